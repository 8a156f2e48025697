"""A shared queue of a master that is at work when sharing begins, or whose sharing fails."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyfleet.fleet.journal import Journal, QueuedPrompt
from tests.queue_bed.bed import PACK, Gates, fault, saved, share, unshare
from tests.support import Master, error_of, wait_until

pytestmark = pytest.mark.cluster

#: A pack with which a worker cannot start as long as a file says so.
_BREAKING = """
import os, pathlib
if os.environ.get("COMFYFLEET_WORKER") and pathlib.Path({path!r}).exists():
    os._exit(3)
NODE_CLASS_MAPPINGS = {{}}
"""


@pytest.fixture(scope="module")
def breaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, no worker can start."""
    return tmp_path_factory.mktemp("breaking") / "broken"


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, breaking: Path, nothing_left: None
) -> Iterator[Master]:
    """A master with one worker, whose queue has never been shared."""
    (breaking.parent / "pack").mkdir()
    (breaking.parent / "pack" / "__init__.py").write_text(_BREAKING.format(path=str(breaking)))
    packs = {"queue_bed": PACK, "breaking": breaking.parent / "pack"}
    running = Master(comfyui, tmp_path_factory.mktemp("at-work"), workers="cpu", packs=packs)
    yield running
    running.close()


def test_what_sharing_that_failed_had_begun_is_undone(server: Master, breaking: Path) -> None:
    """Another master may have the journal, in which is what one before this has left."""
    file = server.folder / "queue.sqlite3"
    file.parent.mkdir(parents=True, exist_ok=True)
    left = QueuedPrompt(
        number=1.0, prompt_id="left", prompt=saved(7), extra_data={}, outputs=("3",)
    )
    journal = Journal(file)
    journal.put(left)
    journal.close()
    breaking.touch()
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post("/comfyfleet/v1/share", {"on": True, "master_computes": True})
    assert "could not start" in json.load(caught.value)["error"]
    journal = Journal(file)
    assert journal.unfinished() == [left]
    journal.close()
    breaking.unlink()
    share(server, master_computes=True)
    assert server.finish("left")["status"]["status_str"] == "success"


def test_what_the_only_worker_fails_waits_for_a_master_that_is_at_work(
    server: Master, gates: Gates
) -> None:
    """It failed at once, if the master was so from the first moment."""
    unshare(server)
    busy = server.queue(gates.prompt("busy", cls="TestOnlyHere"))
    gates.wait("busy")
    share(server, master_computes=True)
    failing = server.queue(fault("cpu-0", color=8))

    def failed() -> bool:
        (worker,) = server.get("/comfyfleet/v1/status")["workers"][:1]
        return worker["units_failed"] > 0

    wait_until(failed, "the worker to fail it", 60)
    gates.open("busy")
    for prompt_id in (busy, failing):
        entry = server.finish(prompt_id)
        assert entry["status"]["status_str"] == "success", error_of(entry)
