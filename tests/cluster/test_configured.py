"""A ComfyUI whose settings stand in fleet.yaml: wrong at first, then set right."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import prompts
from tests.support import Master

pytestmark = pytest.mark.cluster

SHARE = "/comfyfleet/v1/share"
WRONG = "settings:\n  share: true\n  workers: cpu\n  master: flase\n"


@pytest.fixture(scope="module")
def configured(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master without any setting in its environment."""
    base = tmp_path_factory.mktemp("configured")
    file_of(base).parent.mkdir(parents=True)
    file_of(base).write_text(WRONG)
    running = Master(comfyui, base, workers="")
    yield running
    running.close()


def file_of(base: Path) -> Path:
    return base / "user" / "comfyfleet" / "fleet.yaml"


def test_what_is_wrong_is_said_at_the_start_and_what_is_right_holds(configured: Master) -> None:
    path = file_of(configured.base)
    said = f"{path.resolve()}, line 4: settings.master is 'flase'; give true or false."
    state = configured.get(SHARE)
    assert state["on"] is False and state["note"] == said
    assert said in configured.log.read_text()
    with pytest.raises(urllib.error.HTTPError) as caught:
        configured.post(SHARE, {"on": True})
    assert said in caught.value.read().decode()
    path.write_text(WRONG.replace("flase", "false"))
    shared: dict[str, Any] = configured.post(SHARE, {"on": True})
    assert shared == {"on": True, "master_computes": False, "note": ""}
    configured.run(prompts.demo())
    status = configured.get("/comfyfleet/v1/status")
    assert [worker["id"] for worker in status["workers"] if worker["id"] != "master"] == ["cpu-0"]
