"""Simulated fleets: dispatch against workers that exist only as random numbers.

A heap of things that will happen, a clock that jumps from one to the next, and every kind of
trouble that a real fleet has: unequal speeds, models to load, lost and new workers, failures,
stragglers. No thread, no sleep; the same seed gives the same story.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass

from comfyfleet.work import (
    Deliver,
    Dispatch,
    Event,
    FailRun,
    Failure,
    FinishRun,
    Instruction,
    Interrupt,
    RunSubmitted,
    Start,
    Tick,
    Unit,
    UnitDone,
    UnitFailed,
    WorkerJoined,
    WorkerLost,
)

_INTERRUPT_S = 0.5  # a sampler step: ComfyUI looks for interrupts between steps
_FAILURE = Failure(message="simulated failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet, its work, and its bad luck."""

    #: Seconds per unit of cost, one per worker.
    paces: tuple[float, ...]
    num_units: int
    num_runs: int = 1
    num_models: int = 1
    seed: int = 0
    #: Time varies by this part, up and down.
    noise: float = 0.0
    #: To load a model that the worker does not hold.
    load_s: float = 0.0
    failure_chance: float = 0.0
    #: Chance that a unit takes 100 times as long.
    straggler_chance: float = 0.0
    #: Chance per attempt that its worker dies of it; another joins a minute later.
    loss_chance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    units: int
    delivered: int
    #: Deliveries of a unit that had been delivered before.
    duplicated: int
    #: Units that were never delivered.
    lost: int
    failed_runs: int
    workers_lost: int
    handle_cpu_s: float
    microseconds_per_unit: float
    makespan_s: float
    #: All workers busy with useful work from first to last, nothing to load, nobody lost.
    ideal_s: float


def large_fleet(seed: int = 0) -> Scenario:
    """1,000 workers, the slowest eight times slower than the fastest, 100,000 units, trouble."""
    rng = random.Random(seed)
    return Scenario(
        paces=tuple(5.0 * 8 ** rng.random() for _ in range(1000)),
        num_units=100_000,
        num_runs=10,
        num_models=7,
        seed=seed,
        noise=0.1,
        load_s=20.0,
        failure_chance=0.002,
        straggler_chance=0.0005,
        loss_chance=0.002,
    )


def simulate(scenario: Scenario) -> SimulationResult:
    return _Simulation(scenario).run()


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._rng = random.Random(scenario.seed)
        self._dispatch = Dispatch()
        self._now = 0.0
        self._cpu_s = 0.0
        self._order = itertools.count()
        #: time, order, event; an event about a unit counts only while its attempt goes on.
        self._future: list[tuple[float, int, Event]] = []
        self._paces: dict[str, float] = {}
        self._models: dict[str, str] = {}
        #: worker -> the one event that ends what it has in hand
        self._ends: dict[str, Event] = {}
        self._unlucky: set[str] = set()
        self._deliveries: Counter[str] = Counter()
        self._runs_left = scenario.num_runs
        self._failed_runs = 0
        self._workers_lost = 0

    def run(self) -> SimulationResult:
        for pace in self._scenario.paces:
            self._join(pace, 0.0)
        cost = 0.0
        for event in _runs(self._scenario):
            cost += sum(unit.cost for unit in event.units)
            self._later(0.0, event)
        while self._runs_left:
            self._step()
        return self._result(cost)

    def _step(self) -> None:
        """Let the next thing happen, a tick or the next event."""
        deadline = self._dispatch.next_deadline()
        if deadline is not None and (not self._future or deadline < self._future[0][0]):
            self._now = max(self._now, deadline)
            self._feed(Tick())
            return
        self._now, _, event = heapq.heappop(self._future)
        match event:
            case UnitDone() | UnitFailed():
                if self._ends.get(event.worker_id) is event:
                    del self._ends[event.worker_id]
                    self._feed(event)
            case WorkerLost():
                if self._ends.pop(event.worker_id, None) is not None:
                    self._workers_lost += 1
                    self._join(self._paces.pop(event.worker_id), 60.0)
                    self._feed(event)
            case _:
                self._feed(event)

    def _feed(self, event: Event) -> None:
        began = time.thread_time()
        instructions = self._dispatch.handle(event, self._now)
        self._cpu_s += time.thread_time() - began
        for instruction in instructions:
            self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start(worker_id=worker_id, unit=unit):
                self._start(worker_id, unit)
            case Interrupt(worker_id=worker_id, unit_id=unit_id):
                self._end_with(
                    worker_id,
                    _INTERRUPT_S,
                    UnitFailed(worker_id=worker_id, unit_id=unit_id, failure=_FAILURE),
                )
            case Deliver(unit=unit):
                self._deliveries[unit.id] += 1
            case FinishRun():
                self._runs_left -= 1
            case FailRun():
                self._runs_left -= 1
                self._failed_runs += 1

    def _start(self, worker_id: str, unit: Unit) -> None:
        scenario, rng = self._scenario, self._rng
        seconds = self._paces[worker_id] * unit.cost
        seconds *= 1 + rng.uniform(-scenario.noise, scenario.noise)
        if rng.random() < scenario.straggler_chance:
            seconds *= 100
        if self._models.get(worker_id) != unit.model_key:
            self._models[worker_id] = unit.model_key
            seconds += scenario.load_s
        if rng.random() < scenario.loss_chance:
            lost = WorkerLost(worker_id=worker_id, reason="simulated loss")
            self._later(seconds * rng.random(), lost)
        # Twice would fail the run: that is right, and not what is measured here.
        if rng.random() < scenario.failure_chance and unit.id not in self._unlucky:
            self._unlucky.add(unit.id)
            failed = UnitFailed(worker_id=worker_id, unit_id=unit.id, failure=_FAILURE)
            self._end_with(worker_id, seconds * rng.random(), failed)
        else:
            self._end_with(worker_id, seconds, UnitDone(worker_id=worker_id, unit_id=unit.id))

    def _end_with(self, worker_id: str, delay_s: float, event: Event) -> None:
        self._ends[worker_id] = event
        self._later(delay_s, event)

    def _later(self, delay_s: float, event: Event) -> None:
        heapq.heappush(self._future, (self._now + delay_s, next(self._order), event))

    def _join(self, pace: float, delay_s: float) -> None:
        worker_id = f"w{next(self._order)}"
        self._paces[worker_id] = pace
        self._later(delay_s, WorkerJoined(worker_id=worker_id))

    def _result(self, cost: float) -> SimulationResult:
        num_units = self._scenario.num_units
        return SimulationResult(
            units=num_units,
            delivered=len(self._deliveries),
            duplicated=sum(self._deliveries.values()) - len(self._deliveries),
            lost=num_units - len(self._deliveries),
            failed_runs=self._failed_runs,
            workers_lost=self._workers_lost,
            handle_cpu_s=self._cpu_s,
            microseconds_per_unit=1e6 * self._cpu_s / num_units,
            makespan_s=self._now,
            ideal_s=cost / sum(1 / pace for pace in self._scenario.paces),
        )


def _runs(scenario: Scenario) -> list[RunSubmitted]:
    """The units, spread evenly over the runs; a run mixes two models, costs vary by half."""
    rng = random.Random(scenario.seed + 1)
    sizes = [len(range(i, scenario.num_units, scenario.num_runs)) for i in range(scenario.num_runs)]
    return [
        RunSubmitted(
            run_id=f"r{i}",
            units=tuple(
                Unit(
                    run_id=f"r{i}",
                    index=index,
                    prompt={},
                    model_key=f"m{(i + index % 2) % scenario.num_models}",
                    cost=1.0 if scenario.noise == 0 else rng.uniform(0.5, 1.5),
                )
                for index in range(size)
            ),
        )
        for i, size in enumerate(sizes)
    ]
