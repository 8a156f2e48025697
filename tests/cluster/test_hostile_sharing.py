"""A hostile worker on the network runs prompts of the shared queue: what the owner sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.client.hostile import SAVING, Hostile, saved, served
from tests.support import Master, error_of, wait_until

pytestmark = pytest.mark.cluster

CONFIG = """\
settings:
  share: true
  workers: 0
  master: false
workers:
  - name: box
    url: {url}
"""


@pytest.fixture(scope="module")
def hostile() -> Hostile:
    return Hostile()


@pytest.fixture(scope="module")
def master(
    hostile: Hostile,
    comfyui: Path,
    tmp_path_factory: pytest.TempPathFactory,
    nothing_left: None,
) -> Iterator[Master]:
    """One that leaves all prompts to that worker."""
    base = tmp_path_factory.mktemp("shared")
    config = base / "user" / "comfyfleet" / "fleet.yaml"
    config.parent.mkdir(parents=True)
    with served(hostile) as (url,):
        config.write_text(CONFIG.format(url=url))
        with closing(Master(comfyui, base, workers="")) as running:
            wait_until(lambda: running.get("/comfyfleet/v1/share")["on"], "sharing")
            wait_until(lambda: box(running)["state"] == "idle", "the worker")
            yield running


def box(master: Master) -> dict[str, Any]:
    workers = master.get("/comfyfleet/v1/status")["workers"]
    return next(each for each in workers if each["id"] == "box")


def prompt(width: int) -> dict[str, Any]:
    inputs = {"width": width, "height": 16, "batch_size": 1, "color": 0}
    picture = {"class_type": "EmptyImage", "inputs": inputs}
    save = {"images": ["1", 0], "filename_prefix": "mine"}
    return {"1": picture, "3": {**SAVING["3"], "inputs": save}}


def test_its_file_replaces_none_of_the_owners(hostile: Hostile, master: Master) -> None:
    """And what differs there is shown."""
    own = master.base / "output" / "mine.png"
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(b"the owner's")
    hostile.output = {"images": [saved("mine.png")]}
    entry = master.run(prompt(16))
    assert [path.name for path in master.files(entry, "3")] == ["mine_00001_.png"]
    assert own.read_bytes() == b"the owner's"
    (box,) = [
        each for each in master.get("/comfyfleet/v1/status")["workers"] if each["id"] == "box"
    ]
    assert "without this extension: pictures only, in 8 bits" in box["note"]


@pytest.mark.parametrize("name", ["../../evil.png", "evil.svg"])
def test_a_file_that_would_harm_fails_the_prompt(
    hostile: Hostile, master: Master, name: str
) -> None:
    hostile.output = {"images": [saved(name)]}
    entry = master.finish(master.queue(prompt(len(name))))
    assert "evil" in error_of(entry)
    assert not list(master.base.rglob("evil*"))


def test_a_history_without_sense_ends_the_prompt(hostile: Hostile, master: Master) -> None:
    """It does not run on for ever in the owner's queue."""
    hostile.output = {"images": [saved("fine_00001_.png")]}

    async def history(request: web.Request) -> web.Response:
        prompt_id = request.path.rpartition("/")[2]
        status = {"status_str": "success", "completed": True, "messages": []}
        return web.json_response({prompt_id: {"outputs": {"3": {}}, "status": status, "meta": 3}})

    hostile.instead["/history"] = history
    entry = master.finish(master.queue(prompt(99)))
    assert entry["status"]["status_str"] == "success"
    assert master.get("/queue") == {"queue_running": [], "queue_pending": []}
