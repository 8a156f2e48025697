"""Whatever happens, in whatever order: the promises of dispatch hold."""

from __future__ import annotations

import random
from collections import Counter

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
    Interrupt,
    Policy,
    RunCancelled,
    RunSubmitted,
    Start,
    Tick,
    Unit,
    UnitDone,
    UnitFailed,
    UnitProgress,
    WorkerJoined,
    WorkerLost,
)

_POLICY = Policy(min_deadline_s=5.0, hard_factor=3.0, interrupt_patience_s=20.0)
_FAILURE = Failure(message="no luck")
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
        self.fates: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.gone: list[tuple[str, Unit]] = []

    def feed(self, event):
        for instruction in self.dispatch.handle(event, self.now):
            match instruction:
                case Start(worker_id=worker, unit=unit):
                    assert worker in self.workers
                    assert worker not in self.hands, f"{worker} is busy"
                    assert not self.fates[unit.run_id] and not self.delivered[unit.id]
                    for other, in_hand in self.hands.items():
                        late = self.now - self.begun[other] > _POLICY.min_deadline_s - 1e-6
                        assert in_hand != unit or late, f"{unit.id} is on {other} too"
                    self.hands[worker], self.begun[worker] = unit, self.now
                case Interrupt(worker_id=worker, unit_id=unit_id):
                    assert worker not in self.workers or self.hands[worker].id == unit_id
                case Deliver(unit=unit):
                    assert not self.fates[unit.run_id]
                    self.delivered[unit.id] += 1
                case Discard():
                    assert isinstance(event, UnitDone)
                case FinishRun(run_id=run_id):
                    done = sum(key.rpartition(":")[0] == run_id for key in self.delivered)
                    assert done == self.runs[run_id]
                    self.fates[run_id] += 1
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
        self.workers.append(worker)
        self.feed(WorkerJoined(worker_id=worker, only_run=only_run))

    @rule(models=st.lists(st.sampled_from("xy"), max_size=8), cost=st.sampled_from([0, 1, 5]))
    def submit(self, models, cost):
        run_id = self.name("r")
        units = tuple(
            Unit(run_id=run_id, index=i, prompt={}, model_key=model, cost=cost + i % 2)
            for i, model in enumerate(models)
        )
        self.runs[run_id] = len(units)
        self.feed(RunSubmitted(run_id=run_id, units=units))

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
    @rule(pick=_pick, fraction=st.floats(0, 1))
    def progress(self, pick, fraction):
        worker = sorted(self.hands)[pick % len(self.hands)]
        unit_id = self.hands[worker].id
        self.feed(UnitProgress(worker_id=worker, unit_id=unit_id, fraction=fraction))

    @precondition(lambda self: self.workers)
    @rule(pick=_pick)
    def lose(self, pick):
        worker = self.workers.pop(pick % len(self.workers))
        if worker in self.hands:
            self.gone.append((worker, self.hands.pop(worker)))
        self.feed(WorkerLost(worker_id=worker, reason="gone"))

    @precondition(lambda self: self.gone)
    @rule(pick=_pick)
    def speak_from_the_grave(self, pick):
        worker, unit = self.gone[pick % len(self.gone)]
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
        for worker in self.workers:
            assert (self.dispatch.state_of(worker) == "idle") == (worker not in self.hands)

    def teardown(self):
        """Let every worker finish what it has: then every run must come to an end."""
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
