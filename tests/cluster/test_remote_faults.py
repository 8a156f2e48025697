"""Workers elsewhere that lack something, are not there, or go."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from comfyfleet.config import Remote
from comfyfleet.errors import WorkerStartError
from comfyfleet.fleet import Fleet, Host
from tests import prompts
from tests.client.hostile import CLASSES, PROMPT, Hostile, answering, served
from tests.queue_bed.bed import PACK, Gates
from tests.remote_bed.bed import KINDS, Watched, begin, remote, results, returning
from tests.support import Master, free_port, wait_until

pytestmark = pytest.mark.cluster


def test_other_workers_do_what_one_elsewhere_cannot(
    comfyui: Path, elsewhere: dict[str, Master], folders: dict[str, Path]
) -> None:
    """And a collector's shares with values that travel: the plain one is left out, and said."""
    host = Host(comfyui=comfyui, cwd=Path.cwd(), folders=folders)
    remotes = [remote(kind, elsewhere[kind]) for kind in KINDS]
    prompt = returning(prompts.demo(steps=2), ["5", 0], "value")
    del prompt["7"]
    with Fleet([], host, remotes=remotes) as fleet:
        wait_until(lambda: len(fleet.workers) == 2, "both")
        watched = Watched()
        run = begin(fleet, *[prompt] * 4, watched=watched)
        assert run.wait(120)
        assert {delivery.worker_id for delivery in run.results()} == {"extension"}
        refused = {
            e.worker_id for e in watched.of("failed") if e.failure and e.failure.kind == "unfit"
        }
        assert refused <= {"plain"}


def test_nobody_there_is_an_error_that_says_why(comfyui: Path) -> None:
    host = Host(comfyui=comfyui, cwd=Path.cwd())
    url = f"http://127.0.0.1:{free_port()}"
    with (
        pytest.raises(WorkerStartError, match=f"worker box cannot be used: {url}: no connection"),
        Fleet([], host, remotes=[Remote(name="box", url=url)]),
    ):
        raise AssertionError("it started")


def test_one_that_was_started_anew_between_two_looks(comfyui: Path) -> None:
    """It answers all the time, but has other nodes now, and no history."""
    box, host = Hostile(), Host(comfyui=comfyui, cwd=Path.cwd())
    with served(box) as [url], Fleet([], host, remotes=[Remote(name="box", url=url)]) as fleet:
        (before,) = wait_until(lambda: fleet.workers, "the worker", 60)
        results(begin(fleet, PROMPT))
        box.instead["/object_info"] = answering({**CLASSES, "New": {}})
        box.prompts.clear()
        wait_until(lambda: {each.pid for each in fleet.workers} - {before.pid}, "the next one", 60)
        assert "New" in fleet.node_classes


def test_a_worker_that_goes_and_comes_back(
    comfyui: Path,
    tmp_path: Path,
    gates: Gates,
    elsewhere: dict[str, Master],
    folders: dict[str, Path],
) -> None:
    """Its unit runs elsewhere, and later it is there again."""
    gone = Master(comfyui, tmp_path / "gone", workers="0", packs={"queue_bed": PACK})
    host = Host(comfyui=comfyui, cwd=Path.cwd(), folders=folders)
    remotes = [remote("gone", gone), remote("plain", elsewhere["plain"])]
    with closing(gone), Fleet([], host, remotes=remotes) as fleet:
        wait_until(lambda: len(fleet.workers) == 2, "both")
        run = begin(fleet, gates.prompt("a"), gates.prompt("b"))
        gates.wait("a", "b")
        gone.process.kill()
        gone.process.wait()
        gates.open("a", "b")
        assert run.wait(150)
        assert {delivery.worker_id for delivery in run.results()} == {"plain"}
