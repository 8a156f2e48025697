"""Faults at random moments: every picture is there in the end, right, and once.

The seeds are always the same here. ``make slow``, and ``comfyfleet bench chaos``, make fifty runs
with others, and print them; with ``--runs 1 --seed SEED`` the benchmark makes one of them again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import Task, digest_of, disturb, draw_plan, run
from benchmarks.server import Server, comfyui_server
from tests.support import error_of, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(nothing_left: None) -> Iterator[Server]:
    """A master that computes nothing itself, and two workers."""
    with comfyui_server(workers="cpu,cpu") as running:
        running.share()
        yield running
    assert not running.processes()


@pytest.mark.parametrize(
    ("seed", "kinds"),
    [
        (1, ()),
        (2, ("killed", "slowed", "stopped")),
        (3, ("out of memory", "disk full")),
        (4, ("frozen", "reply lost")),
        (5, ("master killed", "master ended")),
    ],
    ids=lambda value: value if isinstance(value, int) else " or ".join(value) or "undisturbed",
)
def test_no_picture_is_lost_or_saved_twice(
    server: Server, seed: int, kinds: tuple[str, ...]
) -> None:
    plan = draw_plan(seed, kinds)
    print(plan)
    outcome = disturb(server, plan)
    assert outcome.well, f"{plan}: {outcome}\n{server.log()[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_fifty_runs_of_random_seeds(nothing_left: None) -> None:
    found = run(runs=50)
    assert not any(found[what] for what in ("lost", "duplicated", "hung", "wrong")), found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_nobody_is_left_a_prompt_is_whole_or_fails_and_none_hangs(
    server: Server, tmp_path: Path
) -> None:
    """Every worker is killed whenever it is there, until all are given up."""
    tasks = draw_plan(6, ()).tasks
    ids = {server.queue(task.prompt(tmp_path)): task for task in tasks}
    wait_until(lambda: _kill_all(server), "the fleet to be given up", 600)
    ids |= {server.queue(task.prompt(tmp_path)): task for task in draw_plan(7, ()).tasks}
    for prompt_id, task in ids.items():
        # Long enough for another fleet to start, which a collector asks for.
        entry = wait_until(lambda at=prompt_id: server.history(at), f"{task}", 200)
        _assert_whole_or_failed(server, entry, task)
    server.share()
    for task in draw_plan(8, ()).tasks:
        server.finish(server.queue(task.prompt(tmp_path)))


def _kill_all(server: Server) -> bool:
    """Kill who is there; true once nobody comes any more."""
    fleet = server.fleet()
    for worker in fleet.workers if fleet else ():
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    return bool(server.ask("/comfyfleet/v1/status")["fleet"] == "ended")


def _assert_whole_or_failed(server: Server, entry: dict[str, Any], task: Task) -> None:
    if entry["status"]["status_str"] == "success":
        names = [image["filename"] for image in entry["outputs"]["3"]["images"]]
        found = [digest_of(server.folder / "output" / name) for name in names]
        assert found == task.pictures()
    else:
        assert "worker" in error_of(entry)
