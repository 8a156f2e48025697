"""Tiles on ComfyUIs elsewhere: one with this extension shares them, one without is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.queue_bed.bed import queued, share
from tests.support import Master
from tests.upscale_bed.bed import PACK, Bed, demo

END = ["6", 0]
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def box(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A ComfyUI with our pack, which knows nothing of any fleet."""
    base = tmp_path_factory.mktemp("box")
    running = Master(comfyui, base, workers="0", packs={"bed": PACK}, settings={"BED": "box"})
    yield running
    running.close()


@pytest.fixture(scope="module")
def plain(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A ComfyUI that nobody touched."""
    running = Master(comfyui, tmp_path_factory.mktemp("plain"), workers="0", plain=True)
    yield running
    running.close()


@pytest.fixture(scope="module")
def bed(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, box: Master, plain: Master
) -> Iterator[Bed]:
    """A master whose only workers are these two, by URL."""
    folder = tmp_path_factory.mktemp("studio")
    config = folder / "comfyui" / "user" / "comfyfleet" / "fleet.yaml"
    config.parent.mkdir(parents=True)
    (folder / "token").write_text(box.token)
    (folder / "token").chmod(0o600)
    lines = [
        f"  - name: box\n    url: {box.url}\n    token_file: {folder / 'token'}\n",
        f"  - name: plain\n    url: {plain.url}\n",
    ]
    config.write_text("workers:\n" + "".join(lines))
    running = Bed(comfyui, folder, "")
    running.order("delay", "0.05")
    yield running
    running.master.close()


def test_a_box_elsewhere_shares_the_tiles_and_changes_no_pixel(bed: Bed) -> None:
    alone = bed.compute(prompt := demo(width=160, height=160, blend="independent", seed=21), END)
    bed.ready()
    assert set(bed.master.states()) == {"box", "plain"}
    with bed.meeting("master", "box"):
        assert np.array_equal(bed.compute(prompt, END), alone)
    assert set(bed.samplings) == {"master", "box"} and sum(bed.samplings.values()) == 25


def test_in_a_shared_queue_an_upscale_stays_with_the_master(bed: Bed) -> None:
    share(bed.master, master_computes=True)
    assert np.isfinite(bed.compute(demo(seed=22), END)).all()
    assert queued(bed.master) == ([], [])
