"""Newer ComfyUI notes what it saves as assets, if it is told to: also what workers have saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.queue_bed.bed import saved, share
from tests.support import Master

pytestmark = pytest.mark.cluster


def test_what_a_worker_saves_is_an_asset_of_the_master(
    comfyui: Path, tmp_path: Path, nothing_left: None
) -> None:
    if not (comfyui / "comfy_execution" / "asset_enrichment.py").is_file():
        pytest.skip("this ComfyUI notes no assets in its history")
    master = Master(comfyui, tmp_path / "base", workers="cpu", flags=["--enable-assets"])
    try:
        share(master)
        entry = master.run(saved(5))
        (shown,) = entry["outputs"]["3"]["images"]
        asset = master.get(f"/api/assets/{shown['id']}")
        assert asset["name"] == shown["filename"]
    finally:
        master.close()
