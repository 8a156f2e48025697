"""Workers that take nothing for a while, or end what they do: by the owner's word, or for cause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.test_cancel import all_idle, held_shares
from tests.queue_bed.bed import (
    PACK,
    Gates,
    fault,
    hold,
    picture,
    queued,
    saved,
    share,
    unshare,
    wait_to_run,
)
from tests.support import Master, error_of, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with two workers."""
    base = tmp_path_factory.mktemp("actions")
    running = Master(comfyui, base, workers="cpu,cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


@pytest.fixture
def shared(server: Master) -> Iterator[Master]:
    """Only the workers run prompts, and all of them do when a test has ended."""
    share(server)
    act(server, "all", "enable")
    yield server
    act(server, "all", "enable")
    wait_until(lambda: not any(queued(server)) and all_idle(server), "the end of all work", 60)


def act(server: Master, worker: str, action: str) -> dict[str, Any]:
    found: dict[str, Any] = server.post(f"/comfyfleet/v1/workers/{worker}/{action}", {})
    return found


def statuses(server: Master) -> dict[str, dict[str, Any]]:
    workers = server.get("/comfyfleet/v1/status")["workers"]
    return {worker["id"]: worker for worker in workers}


def status_of(server: Master, worker: str) -> dict[str, Any]:
    return statuses(server)[worker]


def pids(server: Master) -> dict[str, int]:
    return {name: worker["pid"] for name, worker in statuses(server).items()}


def ended(server: Master, *prompt_ids: str) -> set[str]:
    return {server.finish(prompt_id)["status"]["status_str"] for prompt_id in prompt_ids}


def test_interrupt_of_one_worker_stops_its_prompt_and_no_other(
    shared: Master, gates: Gates
) -> None:
    held = hold(shared, gates, "a", "b")
    assert act(shared, "cpu-0", "interrupt")["workers"] == ["cpu-0"]
    stopped = shared.finish(held["cpu-0"])
    assert stopped["status"]["messages"][-1][0] == "execution_interrupted"
    assert queued(shared) == ([held["cpu-1"]], [])
    gates.open("a", "b")
    assert ended(shared, held["cpu-1"]) == {"success"}


def test_interrupt_of_all_workers_leaves_the_masters_own_prompt(
    server: Master, gates: Gates
) -> None:
    share(server, master_computes=True)
    held = hold(server, gates, "a", "b", "c")
    waiting = server.queue(gates.prompt("d", 9))
    assert act(server, "all", "interrupt")["workers"] == ["cpu-0", "cpu-1"]
    assert ended(server, held["cpu-0"], held["cpu-1"]) == {"error"}
    assert gates.wait("d")[0].startswith("cpu-")
    gates.open("a", "b", "c", "d")
    assert ended(server, held["master"], waiting) == {"success"}


@pytest.mark.parametrize("word", ["worker", "run"])
@pytest.mark.parametrize("delegate", [False, True], ids=["own share", "delegate"])
def test_a_collector_that_loses_a_share_by_its_owners_word_ends_everywhere(
    shared: Master, gates: Gates, word: str, delegate: bool
) -> None:
    """On the master too, as a batch that lacks a picture is none."""
    share(shared, master_computes=not delegate)
    names = ("a", "b") if delegate else ("a", "b", "c")
    prompt = held_shares(gates, delegate=delegate, shares=len(names))
    prompt_id = shared.queue(prompt)
    gates.wait(*names)
    runs = shared.get("/comfyfleet/v1/status")["runs"]
    (run_id,) = [run["id"] for run in runs if run["outcome"] == "running"]
    if word == "worker":
        act(shared, "cpu-1", "interrupt")
    else:
        shared.post(f"/comfyfleet/v1/runs/{run_id}/cancel", {})
    entry = shared.finish(prompt_id)
    assert entry["status"]["status_str"] == "error" and not entry["outputs"]
    if delegate:
        said = {"worker": "interrupted on worker cpu-1", "run": "cancelled by its owner"}
        assert said[word] in error_of(entry)
    assert len(gates.left(*names)) == len(names)
    shared.run(held_nowhere(gates))


def held_nowhere(gates: Gates) -> dict[str, Any]:
    """The same collector with open gates."""
    gates.open("a", "b", "c")
    return held_shares(gates)


def test_interrupt_of_an_idle_worker_stops_nothing_that_comes(shared: Master, gates: Gates) -> None:
    act(shared, "all", "interrupt")
    shared.run(saved(11))
    shared.run(saved(12))


def test_all_workers_are_restarted_and_nothing_is_lost(shared: Master, gates: Gates) -> None:
    held = hold(shared, gates, "a", "b")
    before = pids(shared)
    gates.forget("a")
    gates.forget("b")
    act(shared, "all", "restart")
    assert sorted(gates.wait("a", "b")) == ["cpu-0", "cpu-1"]
    after = pids(shared)
    assert set(before) == set(after) and not set(before.values()) & set(after.values())
    assert not any(map(psutil.pid_exists, before.values()))
    assert all(map(psutil.pid_exists, after.values()))
    gates.open("a", "b")
    assert ended(shared, *held.values()) == {"success"}


def test_a_worker_that_starts_leaves_the_masters_folders_as_they_are(shared: Master) -> None:
    """ComfyUI empties its temp folder when it starts: a worker's is its own."""
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    (shown,) = shared.run(picture(21) | {"2": preview})["outputs"]["2"]["images"]
    (kept,) = shared.run(saved(22))["outputs"]["3"]["images"]
    before = pids(shared)["cpu-0"]
    act(shared, "cpu-0", "restart")
    wait_until(lambda: pids(shared)["cpu-0"] not in (before, None), "the restart", 60)
    wait_until(lambda: all_idle(shared), "the workers", 60)
    for entry in (shown, kept):
        assert (shared.base / entry["type"] / entry["subfolder"] / entry["filename"]).is_file()


def test_a_worker_that_is_switched_off_while_it_works_ends_that_and_no_more(
    shared: Master, gates: Gates
) -> None:
    """Drain: what it has in hand is finished there, and all else goes to the other one."""
    held = hold(shared, gates, "a", "b")
    act(shared, "cpu-0", "disable")
    wait_until(lambda: "owner" in status_of(shared, "cpu-0")["reason"], "the owner's word")
    assert status_of(shared, "cpu-0")["task"]["prompt_id"] == held["cpu-0"]
    gates.open("a", "b")
    assert ended(shared, *held.values()) == {"success"}
    wait_until(lambda: shared.states()["cpu-0"] == "paused", "the pause")
    for name in ("c", "d", "e"):
        gates.open(name)
        shared.run(gates.prompt(name, ord(name)))
        assert gates.who(name) == "cpu-1"


def test_a_worker_switched_on_while_the_other_works_takes_what_waits(
    shared: Master, gates: Gates
) -> None:
    act(shared, "all", "disable")
    waiting = [shared.queue(gates.prompt(name, ord(name))) for name in ("a", "b")]
    wait_until(lambda: set(shared.states().values()) == {"paused"}, "the pause")
    assert queued(shared) == ([], waiting)
    act(shared, "cpu-1", "enable")
    assert gates.wait("a") == ["cpu-1"]
    wait_to_run(shared, waiting[0])
    assert queued(shared) == (waiting[:1], waiting[1:])
    act(shared, "cpu-0", "enable")
    assert gates.wait("b") == ["cpu-0"]
    gates.open("a", "b")
    assert ended(shared, *waiting) == {"success"}


def test_a_worker_switched_off_and_on_again_keeps_what_it_has_in_hand(
    shared: Master, gates: Gates
) -> None:
    held = hold(shared, gates, "a", "b")
    act(shared, "all", "disable")
    act(shared, "all", "enable")
    gates.open("a", "b")
    assert ended(shared, *held.values()) == {"success"}
    assert sorted(hold(shared, gates, "c", "d")) == ["cpu-0", "cpu-1"]
    gates.open("c", "d")


def test_memory_asked_for_while_a_worker_works_is_freed_and_the_prompt_ends(
    shared: Master, gates: Gates
) -> None:
    """As in one ComfyUI: after the prompt. What was cached is then computed anew."""
    act(shared, "cpu-1", "disable")
    gates.open("kept")
    kept = gates.prompt("kept", 5)
    shared.run(kept)
    held = hold(shared, gates, "a")
    act(shared, "all", "free")
    gates.open("a")
    assert ended(shared, held["cpu-0"]) == {"success"}
    gates.forget("kept")

    def is_computed() -> bool:
        shared.run(kept)
        return gates.reached("kept")

    wait_until(is_computed, "the memory to be free")


def test_a_queue_that_is_shared_no_more_has_workers_all_the_same(
    server: Master, gates: Gates
) -> None:
    share(server)
    held = hold(server, gates, "a", "b")
    unshare(server)
    act(server, "cpu-0", "interrupt")
    assert ended(server, held["cpu-0"]) == {"error"}
    gates.open("a", "b")
    assert ended(server, held["cpu-1"]) == {"success"}


def hold_worker(server: Master, gates: Gates, worker: str, name: str) -> str:
    """A prompt that stands at a gate on this worker, so that what comes goes to the other one."""
    (other,) = {"cpu-0", "cpu-1"} - {worker}
    act(server, other, "disable")
    prompt_id = server.queue(gates.prompt(name, ord(name[0])))
    assert gates.wait(name) == [worker]
    act(server, other, "enable")
    return prompt_id


def test_a_worker_that_fails_again_and_again_rests_heals_and_works_again(
    shared: Master, gates: Gates
) -> None:
    held = hold_worker(shared, gates, "cpu-1", "a")
    failing = [shared.queue(fault("cpu-0", color=color)) for color in range(400, 403)]
    wait_until(lambda: shared.states()["cpu-0"] == "quarantined", "the quarantine")
    found = status_of(shared, "cpu-0")
    assert "it failed 3 times in a row" in found["reason"] and "broken" in found["reason"]
    assert found["quarantines"] == 1
    # It gets nothing, though it is idle and something waits.
    waiting = shared.queue(gates.prompt("b", 3))
    gates.open("a")
    assert ended(shared, held, *failing) == {"success"}
    assert gates.wait("b") == ["cpu-1"]
    assert shared.states()["cpu-0"] == "quarantined"
    # By itself, after half a minute; then one failure is enough.
    wait_until(lambda: shared.states()["cpu-0"] == "idle", "the end of the quarantine", 60)
    assert status_of(shared, "cpu-0")["reason"] == ""
    again = shared.queue(fault("cpu-0", color=403))
    wait_until(lambda: shared.states()["cpu-0"] == "quarantined", "the next quarantine")
    assert "it failed again after quarantine" in status_of(shared, "cpu-0")["reason"]
    gates.open("b")
    assert ended(shared, waiting, again) == {"success"}
    # Its owner knows that it is mended.
    act(shared, "cpu-0", "enable")
    wait_until(lambda: shared.states()["cpu-0"] == "idle", "the owner's word")
    both = hold(shared, gates, "c", "d")
    assert sorted(both) == ["cpu-0", "cpu-1"]
    gates.open("c", "d")
    assert ended(shared, *both.values()) == {"success"}
