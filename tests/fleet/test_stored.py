"""Values of units in the object store: what is let go of while somebody waits for it.

In a process of its own, as Ray is not to be imported before a fleet has begun.
"""

from __future__ import annotations

import subprocess
import sys

ACTORS = """
import asyncio, threading, time
from unittest.mock import MagicMock
from comfyfleet.fleet import actors
from comfyfleet.work import Packed, Unit

storing, go_on = threading.Event(), threading.Event()
def put(packed):
    storing.set()
    assert go_on.wait(60)
    return packed

actors.ray.put = put
unit = Unit(run_id="r", index=0, prompt={}, own=("b",),
            values={"a": Packed(1, []), "b": Packed(2, [])})
"""
LET_GO = """
async def main():
    fleet = actors.Actors([])
    waiting = asyncio.ensure_future(fleet._store(unit))
    await asyncio.to_thread(storing.wait, 60)
    fleet.let_go(unit)
    go_on.set()
    found = await waiting
    assert [each.skeleton for each in found.values()] == [1, 2], found

asyncio.run(main())
"""
ENDED = """
from comfyfleet.fleet.conduct import Conductor
from comfyfleet.work import Dispatch, WorkerJoined, RunSubmitted, RunCancelled
from comfyfleet.fleet.ledger import Ledger
from comfyfleet.fleet.run import Run

begun = []
loop = MagicMock(time=time.monotonic, spawn=begun.append)
dispatch = Dispatch()
conductor = Conductor(dispatch, Ledger(dispatch, {"w": "cpu"}), loop)
conductor.actors = actors.Actors([])
conductor.actors._handles["w"] = MagicMock()
conductor.handle(WorkerJoined(worker_id="w"))
conductor.submit(Run("r", 1, None), RunSubmitted(run_id="r", units=(unit,)), None, None)
conductor.handle(RunCancelled(run_id="r", reason="cancelled"))
asyncio.run(begun[0])
assert conductor.actors._stored == {}, conductor.actors._stored
assert dispatch.state_of("w") == "idle"
begun[1].close()
"""

STOPPED = """
async def main():
    fleet = actors.Actors([])
    worker = fleet._handles["w"] = MagicMock()
    attempt = fleet.run("w", unit)
    coming = asyncio.ensure_future(attempt.__anext__())
    await asyncio.to_thread(storing.wait, 60)
    await fleet.interrupt("w", unit.id)
    go_on.set()
    failure = await coming
    assert failure.message == "interrupted before it began", failure
    worker.interrupt.options.assert_not_called()  # a later attempt there is not meant
    worker.run.options().remote.assert_not_called()
    await attempt.aclose()
    assert not fleet._storing

actors.Actors._supplied = lambda self, worker, prompt, unit="": asyncio.sleep(0, prompt)
asyncio.run(main())
"""


def check(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", ACTORS + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_attempt_keeps_values_that_another_lets_go_of() -> None:
    check(LET_GO)


def test_an_attempt_that_is_stopped_before_it_is_sent_leaves_no_word_there() -> None:
    check(STOPPED)


def test_an_attempt_that_begins_after_its_run_stores_nothing() -> None:
    check(ENDED)
