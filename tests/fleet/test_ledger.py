"""The ledger, fed by a real Dispatch as the fleet feeds it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import pytest

from comfyfleet.errors import RunCancelled, RunError, RunFailed
from comfyfleet.fleet.insight import Happened, RunStatus, WorkerStatus
from comfyfleet.fleet.insight_stream import Subscription
from comfyfleet.fleet.ledger import Ledger
from comfyfleet.fleet.redact import without_secrets
from comfyfleet.fleet.run import Delivery, RunEvent
from comfyfleet.work import (
    CancelRun,
    Deliver,
    Dispatch,
    Event,
    FailRun,
    Failure,
    FinishRun,
    Halve,
    Halved,
    Heal,
    Mirrored,
    Quarantine,
    Result,
    RunSubmitted,
    Start,
    Told,
    Unit,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerInfo,
    WorkerJoined,
    WorkerLent,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
    WorkerReturned,
)
from comfyfleet.work import RunCancelled as RunCancelledEvent
from tests.work.fleet import halve

TOKEN = "comfy-org-token-4711"


class Bed:
    """A fleet without processes: Dispatch, the ledger and a clock that is set by hand."""

    def __init__(self, *workers: str) -> None:
        self.now = 1000.0
        self.dispatch = Dispatch(validate=True)
        self.ledger = Ledger(
            self.dispatch,
            dict.fromkeys(workers, "cpu"),
            clock=lambda: self.now + 1e9,
            timer=lambda: self.now,
        )
        self.reader = self.ledger.subscribe(lambda: None)

    def up(self, *workers: str) -> None:
        for worker_id in workers:
            self.ledger.meet([info(worker_id)])
            self.handle(WorkerJoined(worker_id=worker_id))

    def handle(self, event: Event) -> None:
        """As Fleet._handle."""
        self.ledger.hear(event)
        for instruction in self.dispatch.handle(event, self.now):
            match instruction:
                case Start(unit=unit, worker_id=worker_id):
                    self.tell("started", worker_id, unit)
                case Deliver(unit=unit, worker_id=worker_id, seconds=seconds):
                    self._deliver(unit, worker_id, seconds)
                case FinishRun(run_id=run_id):
                    self.ledger.end(run_id, None)
                case FailRun(run_id=run_id, message=message):
                    self.ledger.end(run_id, RunFailed(message))
                case CancelRun(run_id=run_id, reason=reason):
                    self.ledger.end(run_id, RunCancelled(reason))
                case Halved():
                    self.ledger.note_halved(instruction)
                case Quarantine() | Heal():
                    self.ledger.note(instruction)
        self.ledger.sync()

    def tell(self, kind: Any, worker_id: str, unit: Unit, **rest: Any) -> None:
        self.ledger.take(RunEvent(kind=kind, worker_id=worker_id, unit=unit, **rest))

    def _deliver(self, unit: Unit, worker_id: str, seconds: float) -> None:
        result = Result(values=None)
        delivery = Delivery(unit=unit, worker_id=worker_id, seconds=seconds, result=result)
        self.tell("delivered", worker_id, unit, delivery=delivery)

    def submit(self, *units: Unit, lane: str = "", halve: Halve | None = None) -> None:
        event = RunSubmitted(run_id=units[0].run_id, units=units, lane=lane, halve=halve)
        self.ledger.begin(event)
        self.handle(event)

    def progress(self, worker_id: str, unit: Unit, fraction: float) -> None:
        self.handle(UnitProgress(worker_id=worker_id, unit_id=unit.id, fraction=fraction))
        self.tell("progress", worker_id, unit, fraction=fraction)

    def fail(
        self, worker_id: str, unit: Unit, message: str = "no luck", *, short: bool = False
    ) -> None:
        kind: Literal["error", "out_of_memory"] = "out_of_memory" if short else "error"
        failure = Failure(message=message, traceback=f"Traceback: {message}", kind=kind)
        failure = without_secrets(failure, unit)
        self.tell("failed", worker_id, unit, failure=failure)
        self.handle(UnitFailed(worker_id=worker_id, unit_id=unit.id, failure=failure))

    def done(self, worker_id: str, unit: Unit) -> None:
        self.handle(UnitDone(worker_id=worker_id, unit_id=unit.id))

    def lose(self, worker_id: str, reason: str, *, returns: bool = True) -> None:
        """As Fleet._handle_lost."""
        event = WorkerLost(worker_id=worker_id, reason=reason, returns=returns)
        self.ledger.hear(event)
        if worker_id in self.dispatch.workers:
            unit = self.dispatch.find_unit_on(worker_id)
            if unit is not None:
                self.tell("failed", worker_id, unit, failure=Failure(message=reason))
        self.handle(event)

    def worker(self, worker_id: str) -> WorkerStatus:
        found = {worker.id: worker for worker in self.ledger.snapshot().workers}
        return found[worker_id]

    def run(self, run_id: str = "r") -> RunStatus:
        found = {run.id: run for run in self.ledger.snapshot().runs}
        return found[run_id]

    def events(self) -> list[Happened]:
        return self.reader.take()


def info(worker_id: str) -> WorkerInfo:
    return WorkerInfo(
        id=worker_id,
        device="cpu",
        device_name="a CPU",
        pid=4711,
        comfyui_version="0.3.75",
        log_file=f"/logs/{worker_id}.log",
    )


def unit(index: int = 0, run: str = "r", model: str = "m", secret: str = "") -> Unit:
    extra = {"client_id": "me", "auth_token_comfy_org": secret}
    mirrored = Mirrored(prompt_id=f"prompt-{run}", extra_data=extra, outputs=("9",), features={})
    return Unit(
        run_id=run, index=index, prompt={}, model_key=model, mirrored=mirrored if secret else None
    )


@pytest.fixture
def bed() -> Bed:
    bed = Bed("a", "b")
    bed.up("a", "b")
    bed.events()
    return bed


def test_workers_are_starting_until_they_join() -> None:
    bed = Bed("a")
    assert (bed.worker("a").state, bed.worker("a").pid) == ("starting", None)
    bed.up("a")
    worker = bed.worker("a")
    assert (worker.state, worker.device, worker.device_name) == ("idle", "cpu", "a CPU")
    assert (worker.pid, worker.log_file, worker.restarts) == (4711, "/logs/a.log", 0)


def test_a_worker_at_work_and_its_run(bed: Bed) -> None:
    bed.submit(unit(secret=TOKEN), lane="queue")
    bed.now += 2
    bed.progress("a", unit(), 0.25)
    bed.tell("told", "a", unit(), told=Told("executing", {"node": "5"}))
    bed.tell("told", "a", unit(), told=Told("progress", {"node": "5", "value": 3, "max": 12}))
    worker, run = bed.worker("a"), bed.run()
    assert worker.task is not None
    assert (worker.state, worker.model_key, worker.busy_seconds) == ("busy", "m", 2.0)
    assert (worker.task.prompt_id, worker.task.fraction, worker.task.node) == (
        "prompt-r",
        0.25,
        "5",
    )
    assert (worker.task.step, worker.task.steps) == (3, 12)
    assert (run.outcome, run.lane, run.prompt_id, run.ended) == (
        "running",
        "queue",
        "prompt-r",
        None,
    )
    assert [(a.worker, a.seconds, a.outcome) for a in run.attempts] == [("a", 2.0, "running")]


@pytest.mark.parametrize(
    "data", [None, "x", {}, {"node": None}, {"value": None, "max": "4"}, {"value": math.inf}, [1]]
)
@pytest.mark.parametrize("event", ["executing", "progress", "status", 1])
def test_what_packs_tell_may_be_anything(bed: Bed, event: str | int, data: Any) -> None:
    bed.submit(unit(secret=TOKEN))
    bed.tell("told", "a", unit(), told=Told(event, data))
    task = bed.worker("a").task
    assert task is not None
    assert (task.node, task.step, task.steps) == ("", None, None)


def test_what_is_done_is_counted_and_measured(bed: Bed) -> None:
    bed.submit(unit(0), unit(1))
    bed.now += 4
    bed.done("a", unit(0))
    bed.now += 1
    bed.done("b", unit(1))
    a, run = bed.worker("a"), bed.run()
    assert (a.state, a.task, a.units_done, a.busy_seconds) == ("idle", None, 1, 4.0)
    assert (a.units_per_second, a.model_key) == (0.25, "m")
    assert (run.outcome, run.units, run.units_done, run.ended) == ("done", 2, 2, 1e9 + 1005)
    assert [(x.worker, x.outcome, x.seconds) for x in run.attempts] == [
        ("a", "done", 4.0),
        ("b", "done", 5.0),
    ]
    totals = bed.ledger.snapshot().totals
    assert (totals.runs_done, totals.prompts_done) == (1, 0)


def test_a_failure_is_told_with_its_time_until_the_next_success(bed: Bed) -> None:
    bed.submit(unit())
    bed.fail("a", unit())
    worker = bed.worker("a")
    assert worker.last_error is not None
    assert worker.last_error.message.startswith("no luck")
    assert worker.last_error.time == 1e9 + 1000
    assert (worker.failures_in_row, worker.units_failed) == (1, 1)
    assert bed.worker("b").state == "busy", "another one tries it"
    bed.done("b", unit())
    assert [a.outcome for a in bed.run().attempts] == ["failed", "done"]
    bed.submit(unit(run="s"))
    bed.done("b" if bed.worker("b").task else "a", unit(run="s"))
    bed.submit(unit(0, run="t"), unit(1, run="t"))
    for index in (0, 1):
        holder = next(w for w in ("a", "b") if bed.dispatch.find_unit_on(w) == unit(index, "t"))
        bed.done(holder, unit(index, run="t"))
    assert (bed.worker("a").failures_in_row, bed.worker("a").units_failed) == (0, 1)


def test_what_a_worker_lacks_for_each_unit_is_logged_once(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    bed.handle(WorkerPaused(worker_id="b"))
    units = [unit(0), unit(1)]
    bed.submit(*units)
    for held in units:
        assert bed.dispatch.find_unit_on("a") == held
        bed.fail("a", held, "it lacks a model")
    assert bed.worker("a").units_failed == 2
    assert len([each for each in caplog.records if "lacks a model" in each.getMessage()]) == 1


def test_a_run_that_fails_says_why(bed: Bed) -> None:
    bed.submit(unit(secret=TOKEN))
    bed.fail("a", unit())
    bed.fail("b", unit())
    assert bed.run().outcome == "failed"
    assert "no luck" in bed.run().error
    assert bed.ledger.snapshot().totals.prompts_failed == 1


def test_a_lost_worker_restarts_comes_back_or_is_gone(bed: Bed) -> None:
    bed.submit(unit())
    bed.now += 3
    bed.lose("a", "killed by signal 9")
    lost = bed.worker("a")
    assert (lost.state, lost.reason, lost.pid) == ("restarting", "killed by signal 9", None)
    assert (lost.units_lost, lost.units_failed, lost.busy_seconds) == (1, 0, 3.0)
    assert [x.outcome for x in bed.run().attempts] == ["lost", "running"]
    bed.up("a")
    assert (bed.worker("a").state, bed.worker("a").restarts) == ("idle", 1)
    bed.lose("a", "killed again")
    bed.lose("a", "no log was written", returns=False)
    gone = bed.worker("a")
    assert (gone.state, gone.reason, gone.restarts) == ("gone", "no log was written", 1)
    assert gone.log_file == "/logs/a.log", "it can still be read"


def test_states_that_their_owner_or_dispatch_chose(bed: Bed) -> None:
    bed.handle(WorkerPaused(worker_id="a", reason="switched off by its owner"))
    assert (bed.worker("a").state, bed.worker("a").reason) == (
        "paused",
        "switched off by its owner",
    )
    bed.handle(WorkerResumed(worker_id="a"))
    bed.handle(WorkerLent(worker_id="a"))
    assert bed.worker("a").state == "lent"
    bed.handle(WorkerReturned(worker_id="a"))
    assert (bed.worker("a").state, bed.worker("a").reason) == ("idle", "")


def test_a_quarantine_is_counted(bed: Bed) -> None:
    bed.handle(WorkerPaused(worker_id="b"))
    for number in range(8):
        if bed.worker("a").state == "quarantined":
            break
        bed.submit(unit(run=f"q{number}"))
        bed.fail("a", unit(run=f"q{number}"))
    worker = bed.worker("a")
    assert (worker.state, worker.quarantines) == ("quarantined", 1)
    assert "no luck" in worker.reason


def test_a_cancelled_run_is_nobodys_failure(bed: Bed) -> None:
    bed.submit(unit())
    bed.handle(RunCancelledEvent(run_id="r", reason="enough"))
    assert bed.worker("a").state == "busy", "until it answers"
    bed.fail("a", unit(), "interrupted")
    assert (bed.run().outcome, bed.run().error) == ("cancelled", "enough")
    assert [x.outcome for x in bed.run().attempts] == ["interrupted"]
    assert (bed.worker("a").units_failed, bed.worker("a").last_error) == (0, None)


def test_a_result_that_comes_too_late_closes_its_attempt(bed: Bed) -> None:
    bed.submit(unit())
    bed.handle(RunCancelledEvent(run_id="r", reason="enough"))
    bed.done("a", unit())
    assert [x.outcome for x in bed.run().attempts] == ["interrupted"]
    assert bed.worker("a").task is None


def test_the_master_is_there_while_it_shares_its_queue(bed: Bed) -> None:
    bed.handle(WorkerJoined(worker_id="master", lane="queue", trusted=True))
    assert bed.worker("master").state == "idle"
    bed.handle(WorkerPaused(worker_id="master", reason="at work"))
    assert (bed.worker("master").state, bed.worker("master").reason) == ("busy", "at work")
    bed.handle(WorkerLost(worker_id="master", reason="it shares its queue no more"))
    assert [worker.id for worker in bed.ledger.snapshot().workers] == ["a", "b"]


def test_a_master_in_a_single_run_is_called_master(bed: Bed) -> None:
    for worker_id in ("a", "b"):
        bed.handle(WorkerPaused(worker_id=worker_id))
    bed.submit(unit())
    bed.handle(WorkerJoined(worker_id="master:r", only_run="r"))
    assert [x.worker for x in bed.run().attempts] == ["master"]
    bed.done("master:r", unit())
    assert bed.run().outcome == "done"
    assert [worker.id for worker in bed.ledger.snapshot().workers] == ["a", "b"]


def test_the_last_200_ended_runs_are_kept(bed: Bed) -> None:
    for number in range(205):
        bed.submit(unit(run=f"n{number}"))
        bed.handle(RunCancelledEvent(run_id=f"n{number}", reason="enough"))
        for worker_id in ("a", "b"):
            if bed.dispatch.find_unit_on(worker_id) is not None:
                bed.fail(worker_id, unit(run=f"n{number}"))
    runs = bed.ledger.snapshot().runs
    assert [run.id for run in runs] == [f"n{number}" for number in range(5, 205)]
    assert bed.ledger.snapshot().totals.runs_cancelled == 205


def test_waiting_runs_are_counted_and_the_first_are_shown(bed: Bed) -> None:
    for number in range(300):
        bed.submit(unit(run=f"n{number}"))
    snapshot = bed.ledger.snapshot()
    assert snapshot.runs_waiting == 298
    assert [run.outcome for run in snapshot.runs] == ["running"] * 2 + ["waiting"] * 200


def test_a_run_of_many_units_shows_its_latest_starts(bed: Bed) -> None:
    units = [unit(index) for index in range(150)]
    bed.submit(*units)
    while bed.run().outcome == "running":
        for worker_id in ("a", "b"):
            held = bed.dispatch.find_unit_on(worker_id)
            if held is not None:
                bed.done(worker_id, held)
    run = bed.run()
    assert (run.num_attempts, len(run.attempts), run.units_done) == (150, 100, 150)


def test_a_unit_in_halves_is_said(bed: Bed) -> None:
    whole = replace(unit(), items=4)
    bed.submit(whole, halve=halve)
    for worker_id in ("a", "b", "a"):
        bed.fail(worker_id, whole, "no memory", short=True)
    (told,) = [event.data for event in bed.events() if event.kind == "unit.halved"]
    assert (told["run"], told["unit"], told["into"], told["items"]) == ("r", 0, [1, 2], [2, 2])
    for index, worker_id in ((1, "a"), (2, "b")):
        bed.done(worker_id, replace(unit(index), items=2))
    run = bed.run()
    assert (run.outcome, run.units, run.units_done, run.units_halved) == ("done", 2, 2, 1)
    assert [attempt.outcome for attempt in run.attempts] == ["failed"] * 3 + ["done"] * 2


def test_events_come_in_order_and_say_what_a_snapshot_says(bed: Bed) -> None:
    bed.submit(unit())
    bed.progress("a", unit(), 0.5)
    bed.done("a", unit())
    events = bed.events()
    assert [event.kind for event in events] == [
        "run.submitted",
        "unit.started",
        "worker.changed",
        "unit.progress",
        "unit.ended",
        "run.ended",
        "worker.changed",
    ]
    numbers = [event.seq for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + 7))
    assert events[-1].seq == bed.ledger.snapshot().seq
    assert events[3].data["fraction"] == 0.5
    assert (events[4].data["outcome"], events[4].data["worker"]) == ("done", "a")
    assert events[6].data == {"worker": "a", "state": "idle", "reason": ""}
    json.dumps([asdict(event) for event in events])


def test_nobody_is_told_after_leaving(bed: Bed) -> None:
    bed.ledger.unsubscribe(bed.reader)
    bed.submit(unit())
    assert bed.events() == []


def test_a_slow_reader_is_told_what_it_missed() -> None:
    woken: list[bool] = []
    reader = Subscription(lambda: woken.append(True), waiting=3)
    for number in range(5):
        reader.put(Happened(seq=number, time=0.0, kind="worker.changed", data={}))
    assert woken == [True], "once for all that wait"
    events = reader.take()
    assert [event.kind for event in events] == ["worker.changed"] * 3 + ["missed"]
    assert events[-1].data == {"events": 2}
    reader.put(Happened(seq=6, time=0.0, kind="worker.changed", data={}))
    assert [event.seq for event in reader.take()] == [6]
    assert len(woken) == 2


def fails_everywhere(bed: Bed, held: Unit) -> None:
    for worker_id in ("a", "b"):
        bed.fail(worker_id, held, f"401 for {TOKEN}")


def fails_until_quarantine(bed: Bed, held: Unit) -> None:
    bed.handle(WorkerPaused(worker_id="b"))
    bed.fail("a", held, f"401 for {TOKEN}")
    for number in range(8):
        if bed.worker("a").state != "quarantined":
            bed.submit(again := unit(run=f"again{number}", secret=TOKEN))
            bed.fail("a", again, f"401 for {TOKEN}")
    assert "401 for (secret)" in bed.worker("a").reason


def is_told(bed: Bed, held: Unit) -> None:
    inputs = {"current_inputs": {"token": [TOKEN]}}
    bed.tell("told", "a", held, told=Told("execution_error", inputs))


def is_cancelled(bed: Bed, held: Unit) -> None:
    bed.handle(RunCancelledEvent(run_id="r", reason="enough"))


ENDINGS: list[Callable[[Bed, Unit], None]] = [
    fails_everywhere,
    fails_until_quarantine,
    is_told,
    is_cancelled,
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_clients_token_is_nowhere(bed: Bed, ending: Callable[[Bed, Unit], None]) -> None:
    held = unit(secret=TOKEN)
    bed.submit(held)
    ending(bed, held)
    text = json.dumps([asdict(bed.ledger.snapshot()), *map(asdict, bed.events())])
    assert TOKEN not in text
    assert "prompt-r" in text
    assert ("401 for (secret)" in text) == (ending.__name__.startswith("fails"))


def test_an_error_of_any_length_is_cut(bed: Bed) -> None:
    error: RunError = RunFailed("x" * 100_000)
    bed.submit(unit())
    bed.ledger.end("r", error)
    assert len(bed.run().error) == 4000
