"""Whatever happens, in whatever order: the promises of dispatch hold."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comfyfleet.work import (
    CancelRun,
    Deliver,
    Discard,
    Dispatch,
    FailRun,
    Failure,
    FinishRun,
    Halved,
    Heal,
    Interrupt,
    Policy,
    Quarantine,
    RunCancelled,
    RunSubmitted,
    Start,
    Tick,
    Unit,
    UnitDone,
    UnitFailed,
    UnitProgress,
    UnitsAdded,
    WorkerHealed,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from tests.work.fleet import halve

_POLICY = Policy(
    min_deadline_s=5.0,
    hard_factor=3.0,
    interrupt_patience_s=20.0,
    max_worker_failures=1,
    quarantine_s=4.0,
    max_quarantine_s=10.0,
)
_FAILURE = Failure(message="no luck")
_SHORTAGE = Failure(message="no memory", kind="out_of_memory")
_LANES = st.sampled_from(["", "queue"])
_pick = st.integers(0, 10**6)


class AnyStory(RuleBasedStateMachine):
    """An engine to which everything happens; dispatch checks its own invariants as well."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = Dispatch(_POLICY, validate=True)
        self.now = 0.0
        self.num_named = 0
        #: worker -> the unit that it has in hand
        self.hands: dict[str, Unit] = {}
        #: worker -> when it got it
        self.begun: dict[str, float] = {}
        self.workers: list[str] = []
        self.runs: dict[str, int] = {}
        #: Runs of which more may come.
        self.open: set[str] = set()
        self.fates: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.gone: list[tuple[str, Unit]] = []
        #: Every worker that ever joined for more than one run.
        self.names: set[str] = set()
        #: Those that are lost and coming back.
        self.expected: set[str] = set()
        self.paused: set[str] = set()
        self.quarantined: set[str] = set()
        #: Workers whose unit is to be stopped.
        self.interrupted: set[str] = set()
        #: (worker, unit id) of those that ran out of memory.
        self.short: set[tuple[str, str]] = set()

    def feed(self, event):
        self.carry_out(event, self.dispatch.handle(event, self.now))

    def carry_out(self, event, instructions):
        for instruction in instructions:
            match instruction:
                case Start(worker_id=worker, unit=unit, free_first=free_first):
                    assert worker in self.workers
                    assert worker not in self.paused | self.quarantined
                    assert free_first == ((worker, unit.id) in self.short)
                    assert worker not in self.hands, f"{worker} is busy"
                    assert not self.fates[unit.run_id] and not self.delivered[unit.id]
                    for other, in_hand in self.hands.items():
                        late = self.now - self.begun[other] > _POLICY.min_deadline_s - 1e-6
                        assert in_hand != unit or late, f"{unit.id} is on {other} too"
                    self.hands[worker], self.begun[worker] = unit, self.now
                    self.interrupted.discard(worker)
                case Interrupt(worker_id=worker, unit_id=unit_id):
                    assert worker not in self.workers or self.hands[worker].id == unit_id
                    self.interrupted.add(worker)
                case Deliver(unit=unit):
                    assert not self.fates[unit.run_id]
                    self.delivered[unit.id] += 1
                case Halved(unit=unit, halves=halves):
                    assert unit.items == sum(half.items for half in halves)
                    assert unit.id not in self.delivered
                    self.runs[unit.run_id] += 1
                case Discard():
                    assert isinstance(event, UnitDone)
                case FinishRun(run_id=run_id):
                    done = sum(key.rpartition(":")[0] == run_id for key in self.delivered)
                    assert done == self.runs[run_id] and run_id not in self.open
                    self.fates[run_id] += 1
                case Quarantine(worker_id=worker, seconds=seconds):
                    assert worker not in self.quarantined and worker in self.names
                    assert _POLICY.quarantine_s <= seconds <= _POLICY.max_quarantine_s
                    self.quarantined.add(worker)
                case Heal(worker_id=worker):
                    self.quarantined.remove(worker)
                case FailRun(run_id=run_id) | CancelRun(run_id=run_id):
                    self.fates[run_id] += 1
        self.workers = [w for w in self.workers if w in self.dispatch.workers]
        for worker in self.hands.keys() - set(self.workers):
            self.gone.append((worker, self.hands.pop(worker)))

    def name(self, prefix):
        self.num_named += 1
        return f"{prefix}{self.num_named}"

    def end(self, pick, event):
        worker = sorted(self.hands)[pick % len(self.hands)]
        unit = self.hands.pop(worker)
        self.feed(event(worker, unit))

    @initialize(num=st.integers(0, 4))
    def begin(self, num):
        for _ in range(num):
            self.join(only=None)

    @rule(only=st.none() | _pick)
    def join(self, only):
        worker, live = self.name("w"), sorted(set(self.runs) - set(self.fates))
        only_run = live[only % len(live)] if live and only is not None else None
        self.enter(worker, only_run=only_run)

    @rule(lane=_LANES)
    def join_lane(self, lane):
        self.enter(self.name("w"), lane=lane)

    @precondition(lambda self: self.away)
    @rule(pick=_pick, lane=st.none() | _LANES)
    def join_again(self, pick, lane):
        self.enter(self.away[pick % len(self.away)], lane=lane)

    def enter(self, worker, only_run=None, lane=None):
        if only_run is None:
            self.names.add(worker)
        self.expected.discard(worker)
        self.workers.append(worker)
        self.feed(WorkerJoined(worker_id=worker, only_run=only_run, lane=lane))

    @property
    def away(self):
        return sorted(self.names - set(self.workers))

    @rule(
        models=st.lists(st.sampled_from("xy"), max_size=8),
        cost=st.sampled_from([0, 1, 5]),
        lane=_LANES,
        priority=st.integers(-1, 1),
        more=st.booleans(),
    )
    def submit(self, models, cost, lane, priority, more):
        run_id = self.name("r")
        units = self.units_of(run_id, models, cost, more)
        event = RunSubmitted(run_id=run_id, units=units, lane=lane, priority=priority, more=more)
        self.feed(event)

    @rule(items=st.lists(st.integers(1, 9), min_size=1, max_size=4), lane=_LANES)
    def submit_slices(self, items, lane):
        run_id = self.name("r")
        self.runs[run_id] = len(items)
        units = tuple(
            Unit(run_id=run_id, index=i, prompt={}, items=num) for i, num in enumerate(items)
        )
        self.feed(RunSubmitted(run_id=run_id, units=units, lane=lane, halve=halve))

    def units_of(self, run_id, models, cost, more):
        first = self.runs.get(run_id, 0)
        self.runs[run_id] = first + len(models)
        (self.open.add if more else self.open.discard)(run_id)
        return tuple(
            Unit(run_id=run_id, index=first + i, prompt={}, model_key=model, cost=cost + i % 2)
            for i, model in enumerate(models)
        )

    @precondition(lambda self: self.open)
    @rule(pick=_pick, models=st.lists(st.sampled_from("xy"), max_size=3), more=st.booleans())
    def add(self, pick, models, more):
        run_id = sorted(self.open)[pick % len(self.open)]
        units = self.units_of(run_id, models, 1, more)
        self.feed(UnitsAdded(run_id=run_id, units=units, more=more))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0]))
    def wait(self, seconds):
        self.now += seconds

    # In a few steps of hardly any progress, deadlines grow beyond what floats can tell apart.
    @precondition(lambda self: 0 <= (self.dispatch.next_deadline() or -1) < 1e9)
    @rule()
    def tick(self):
        self.now = max(self.now, self.dispatch.next_deadline())
        self.feed(Tick())
        deadline = self.dispatch.next_deadline()
        assert deadline is None or deadline > self.now

    @precondition(lambda self: self.hands)
    @rule(pick=_pick, seconds=st.sampled_from([0.0, 1.0, 4.0]))
    def succeed(self, pick, seconds):
        self.now += seconds
        self.end(pick, lambda worker, unit: UnitDone(worker_id=worker, unit_id=unit.id))

    @precondition(lambda self: self.hands)
    @rule(pick=_pick)
    def fail(self, pick):
        self.end(
            pick,
            lambda worker, unit: UnitFailed(worker_id=worker, unit_id=unit.id, failure=_FAILURE),
        )

    @precondition(lambda self: self.hands)
    @rule(pick=_pick)
    def run_out_of_memory(self, pick):
        worker = sorted(self.hands)[pick % len(self.hands)]
        unit = self.hands.pop(worker)
        if worker not in self.interrupted:
            self.short.add((worker, unit.id))
        self.feed(UnitFailed(worker_id=worker, unit_id=unit.id, failure=_SHORTAGE))

    @precondition(lambda self: self.hands)
    @rule(pick=_pick, fraction=st.floats(0, 1))
    def progress(self, pick, fraction):
        worker = sorted(self.hands)[pick % len(self.hands)]
        unit_id = self.hands[worker].id
        self.feed(UnitProgress(worker_id=worker, unit_id=unit_id, fraction=fraction))

    @precondition(lambda self: self.workers)
    @rule(pick=_pick, returns=st.booleans())
    def lose(self, pick, returns):
        worker = self.workers.pop(pick % len(self.workers))
        if worker in self.hands:
            self.gone.append((worker, self.hands.pop(worker)))
        self.miss(worker, returns)

    @precondition(lambda self: self.away)
    @rule(pick=_pick, returns=st.booleans())
    def fail_to_come_back(self, pick, returns):
        self.miss(self.away[pick % len(self.away)], returns)

    def miss(self, worker, returns):
        (self.expected.add if returns else self.expected.discard)(worker)
        self.feed(WorkerLost(worker_id=worker, reason="gone", returns=returns))

    @precondition(lambda self: self.names)
    @rule(pick=_pick, pause=st.booleans())
    def pause_or_resume(self, pick, pause):
        worker = sorted(self.names)[pick % len(self.names)]
        (self.paused.add if pause else self.paused.discard)(worker)
        self.feed((WorkerPaused if pause else WorkerResumed)(worker_id=worker))

    @precondition(lambda self: self.names)
    @rule(pick=_pick)
    def heal(self, pick):
        worker = sorted(self.names)[pick % len(self.names)]
        self.feed(WorkerHealed(worker_id=worker))
        assert worker not in self.quarantined

    @rule(seconds=st.sampled_from([0.0, 2.0]), num=st.integers(1, 3))
    def change_policy(self, seconds, num):
        policy = replace(_POLICY, stagger_s=seconds, max_worker_failures=num)
        self.carry_out(None, self.dispatch.set_policy(policy, self.now))

    @precondition(lambda self: self.gone)
    @rule(pick=_pick)
    def speak_from_the_grave(self, pick):
        worker, unit = self.gone[pick % len(self.gone)]
        if self.hands.get(worker) == unit:
            return  # that would be its word on the attempt of today
        self.feed(UnitDone(worker_id=worker, unit_id=unit.id))

    @precondition(lambda self: self.runs)
    @rule(pick=_pick)
    def cancel(self, pick):
        run_id = sorted(self.runs)[pick % len(self.runs)]
        self.feed(RunCancelled(run_id=run_id, reason="user"))
        assert self.fates[run_id] == 1

    @invariant()
    def nothing_happens_twice(self):
        assert max(self.delivered.values(), default=0) <= 1
        assert max(self.fates.values(), default=0) <= 1

    @invariant()
    def busy_are_those_with_something_in_hand(self):
        held = self.paused | self.quarantined
        for worker in self.workers:
            state = self.dispatch.state_of(worker)
            assert (state in ("busy", "stuck")) == (worker in self.hands)
            assert (state == "idle") == (worker not in self.hands and worker not in held)

    def teardown(self):
        """Let every worker come back, go on and finish: then every run must come to an end."""
        for worker in self.away:
            self.enter(worker)
        for worker in sorted(self.expected):
            self.feed(WorkerLost(worker_id=worker, reason="gone"))
        for worker in sorted(self.paused):
            self.paused.remove(worker)
            self.feed(WorkerResumed(worker_id=worker))
        for run_id in sorted(self.open):
            self.open.remove(run_id)
            self.feed(UnitsAdded(run_id=run_id, units=(), more=False))
        for _ in range(10_000):
            if set(self.fates) == set(self.runs):
                break
            if self.hands:
                self.succeed(0, 1.0)
            else:
                self.tick()
        assert set(self.fates) == set(self.runs), "a run waits for ever"


TestAnyStory = AnyStory.TestCase
TestAnyStory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(seed=st.integers(0, 10**9), num_units=st.integers(1, 40), num_workers=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_what_is_delivered_does_not_depend_on_who_is_first(seed, num_units, num_workers):
    rng = random.Random(seed)
    dispatch = Dispatch(validate=True)
    for i in range(num_workers):
        dispatch.handle(WorkerJoined(worker_id=f"w{i}"), 0.0)
    units = tuple(Unit(run_id="r", index=i, prompt={}) for i in range(num_units))
    instructions = dispatch.handle(RunSubmitted(run_id="r", units=units), 0.0)
    hands, delivered, now = {}, [], 0.0
    while FinishRun(run_id="r") not in instructions:
        hands |= {i.worker_id: i.unit for i in instructions if isinstance(i, Start)}
        now += rng.random()
        worker = rng.choice(sorted(hands))
        event = UnitDone(worker_id=worker, unit_id=hands.pop(worker).id)
        instructions = dispatch.handle(event, now)
        delivered += [i.unit.index for i in instructions if isinstance(i, Deliver)]
    assert sorted(delivered) == list(range(num_units))
