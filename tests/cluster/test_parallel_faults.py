"""Parallel Model when workers die, hang or fail, and when the user stops it: in this order.

Whatever happens, the picture is the one that one device gives, or the prompt ends as it should.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.parallel_bed.bed import TOLERANCE, Bed, Outcome
from tests.parallel_bed.events import Event, Recording, record
from tests.parallel_bed.prompts import Prompt, dual_guided, sampling
from tests.support import error_of, wait_until

pytestmark = pytest.mark.cluster

SEQUENCE = {"strategy": "sequence"}
BY_CFG = {"strategy": "cfg"}
RING = {"strategy": "sequence", "ring": 3}
#: Where and when something happens: before the first exchange, and in the middle of the third step.
PLACES = [("first", 0), ("last", 2)]
BY_THREE = "4 as ulysses 3"
ALONE = "4 as one device"
#: Seconds in which a lost follower is noticed on the busiest machine; the time limit of a step,
#: by which it would be noticed otherwise, is ten minutes.
NOTICED_S = 60
STEPS = 12
#: As many that the sampler never gets to the last one, however late it is stopped.
ENDLESS = 10_000

_seeds = iter(range(1000, 2000))


def fresh(**options: Any) -> Prompt:
    """A prompt that ComfyUI's cache cannot answer."""
    return sampling("wan", **{"seed": next(_seeds), "parallel": SEQUENCE, **options})


def trapped(bed: Bed, *, key: str = "", **options: Any) -> Prompt:
    """A prompt whose model looks for orders; a new key makes the node itself run again."""
    node, inputs = bed.trap
    return fresh(before=[(node, {**inputs, "key": key})], **options)


@pytest.fixture
def whole(bed: Bed) -> Bed:
    """The bed with both workers."""
    bed.mend()
    gang_of_three(bed)
    return bed


def gang_of_three(bed: Bed) -> None:
    """The next prompt is computed by all; a second one, if the first began too early."""
    found = bed.run(fresh())
    if found.samplings != [BY_THREE]:
        found = bed.run(fresh())
    assert found.samplings == [BY_THREE], found.texts
    assert found.error <= TOLERANCE


def lost_one(found: Outcome, worker: str, steps: int) -> None:
    """The picture is right, one worker was lost on the way, and the user was told."""
    assert found.error <= TOLERANCE, (found.error, found.texts)
    (warning,) = (line for line in found.warnings.splitlines() if "One device" in line)
    assert re.fullmatch(rf".* {worker} was lost: \S.*\. This step is repeated\.", warning), warning
    (sampled,) = found.samplings
    counts = {
        way: int(count) for count, way in (part.split(" as ") for part in sampled.split(", "))
    }
    assert counts["one device"] > 0 and sum(counts.values()) == steps, sampled


class Clock:
    """When each step of the sampler ended; what to do then."""

    def __init__(self, at_step: int, act: Callable[[], object]) -> None:
        self._at_step = at_step
        self._act = act
        self.times: list[float] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "progress" and event.node == "sampler":
            self.times.append(time.monotonic())
            if event.value == self._at_step:
                self._act()

    @property
    def longest_s(self) -> float:
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


def interrupted(bed: Bed, prompt: Prompt, on_event: Callable[[Event], None]) -> Recording:
    found = record(bed.master, prompt, on_event=on_event)
    assert Event("execution_interrupted", "sampler") in found.events
    return found


# The user stops it. (First, before there is a fleet.)


def test_interrupted_while_workers_start(bed: Bed) -> None:
    with bed.closed():
        found = interrupted(bed, fresh(), stop_at_once(bed))
    assert found.count("progress") == 0
    gang_of_three(bed)


def stop_at_once(bed: Bed) -> Callable[[Event], None]:
    def stop(event: Event) -> None:
        if event == Event("executing", "sampler"):
            bed.master.post("/interrupt", {})

    return stop


def test_interrupted_again_and_again(whole: Bed) -> None:
    """Followers are called off while they are on their way."""
    for _ in range(4):
        interrupted(whole, fresh(steps=ENDLESS), stop_at_once(whole))
        interrupted(whole, fresh(steps=ENDLESS), stop_at_once(whole))
        whole.check(fresh(), BY_THREE)


@pytest.mark.parametrize("inputs", [SEQUENCE, BY_CFG])
def test_interrupted_between_steps(whole: Bed, inputs: dict[str, Any]) -> None:
    clock = Clock(3, lambda: whole.master.post("/interrupt", {}))
    interrupted(whole, fresh(steps=ENDLESS, cfg=3.0, parallel=inputs), clock)
    assert len(clock.times) < ENDLESS
    whole.check(fresh(), BY_THREE)


@pytest.mark.parametrize(("place", "after"), PLACES)
@pytest.mark.parametrize("inputs", [SEQUENCE, BY_CFG, RING])
def test_interrupted_in_the_middle_of_a_step(
    whole: Bed, inputs: dict[str, Any], place: str, after: int
) -> None:
    """ComfyUI looks for it at each layer of the model, while others wait for this rank's part."""
    with whole.ordered("interrupt", "leader", place=place, after=after):
        interrupted(whole, trapped(whole, cfg=3.0, parallel=inputs), lambda event: None)
    whole.check(fresh(), BY_THREE)


# An error in one process.


@pytest.mark.parametrize(("place", "after"), PLACES)
@pytest.mark.parametrize("inputs", [SEQUENCE, BY_CFG])
def test_an_error_here_ends_the_prompt(
    whole: Bed, inputs: dict[str, Any], place: str, after: int
) -> None:
    with whole.ordered("error", "leader", place=place, after=after):
        found = record(whole.master, trapped(whole, cfg=3.0, parallel=inputs))
    assert "the trap" in error_of(found.entry)
    whole.check(fresh(), BY_THREE)


@pytest.mark.parametrize(("place", "after"), PLACES)
@pytest.mark.parametrize("inputs", [SEQUENCE, BY_CFG, RING, {"strategy": "batch"}])
def test_an_error_on_a_follower_costs_only_time(
    whole: Bed, inputs: dict[str, Any], place: str, after: int
) -> None:
    prompt = trapped(whole, cfg=3.0, batch=2, parallel=inputs)
    clock = Clock(0, lambda: None)
    with whole.ordered("error", "cpu-0", place=place, after=after):
        found = whole.run(prompt, on_event=clock)
    lost_one(found, "cpu-0", 4)
    assert "the trap" in found.warnings and clock.longest_s < NOTICED_S
    whole.check(fresh(), BY_THREE)


def test_a_follower_that_cannot_load_is_left_out(whole: Bed) -> None:
    prompt = trapped(whole, key="refuse")
    with whole.ordered("refuse", "cpu-0"):
        whole.check_warned(prompt, "cpu-0 failed: .*refused by the trap", "4 as ulysses 2")
    whole.check(fresh(), BY_THREE)


def test_a_follower_without_memory_is_left_out_and_named(whole: Bed) -> None:
    prompt = trapped(whole)
    with whole.ordered("memory", "cpu-1", after=1):
        found = whole.run(prompt)
    lost_one(found, "cpu-1", 4)
    assert "MemoryError" in found.warnings
    gang_of_three(whole)


# Nothing stays behind.


def test_twenty_runs_leave_nothing(whole: Bed) -> None:
    for _ in range(3):
        whole.check(fresh(), BY_THREE)
    before = Footprint(whole)
    for i in range(20):
        strategy, way = (SEQUENCE, BY_THREE) if i % 2 else (BY_CFG, "4 as cfg 2")
        whole.check(fresh(cfg=3.0, parallel=strategy), way)
    try:
        wait_until(lambda: not Footprint(whole).more_than(before), "all to be given back")
    except AssertionError:
        raise AssertionError(Footprint(whole).more_than(before)) from None


class Footprint:
    """What the master and its workers use."""

    def __init__(self, bed: Bed) -> None:
        master = psutil.Process(bed.master.process.pid)
        workers = [psutil.Process(info.pid) for info in bed.fleet().workers]
        self.processes = 1 + len(master.children(recursive=True))
        self.each = {p.pid: self._of(p) for p in [master, *workers]}
        self.files = len(list(bed.folder.rglob("*")))

    def _of(self, process: psutil.Process) -> dict[str, int]:
        return {
            "open files": process.num_fds(),
            "connections": len(process.net_connections()),
            "threads": process.num_threads(),
            "MiB": process.memory_info().rss // 2**20,
        }

    def more_than(self, before: Footprint) -> dict[str, Any]:
        """What has grown, by more than chance: sockets and threads come and go."""
        allowed = {"open files": 3, "connections": 2, "threads": 3, "MiB": 60}
        grown: dict[str, Any] = {}
        for pid, uses in self.each.items():
            for what, count in uses.items():
                if count > before.each[pid][what] + allowed[what]:
                    grown[f"{what} of {pid}"] = (before.each[pid][what], count)
        if self.processes > before.processes:
            grown["processes"] = (before.processes, self.processes)
        if self.files > before.files + 2:
            grown["files"] = (before.files, self.files)
        return grown


# A process that dies or hangs. Each fleet lasts for two tests: starting one takes its time.


def test_a_worker_that_is_killed_is_done_without(whole: Bed) -> None:
    """Then the next prompt uses the rest."""

    def kill() -> None:
        os.kill(whole.pid("cpu-0"), signal.SIGKILL)
        whole.withdraw()

    prompt, clock = trapped(whole, steps=STEPS, size=(192, 192)), Clock(5, kill)
    whole.alone(prompt)
    with whole.closed():
        with whole.ordered("wait", "leader", after=5):  # in the sixth step, until it is killed
            found = whole.run(prompt, on_event=clock)
        lost_one(found, "cpu-0", STEPS)
        assert "its process ended" in found.warnings and clock.longest_s < NOTICED_S
        goes_on_without(whole, "cpu-0")
        assert whole.living() == ["cpu-1"]


def goes_on_without(bed: Bed, worker: str) -> None:
    """The next prompt is computed by the other two."""
    bed.wait_for_end(worker)
    bed.check_warned(fresh(), f"{worker} is busy or gone", "4 as ulysses 2")


def test_a_worker_dies_before_the_first_exchange_and_comes_back(bed: Bed) -> None:
    bed.mend()
    worker = bed.living()[-1]
    clock, began = Clock(0, lambda: None), time.monotonic()
    with bed.ordered("die", worker, place="first"):
        found = bed.run(trapped(bed), on_event=clock)
    assert f"{worker} was lost" in found.warnings and found.error <= TOLERANCE
    assert clock.times[0] - began < NOTICED_S
    bed.mend()
    gang_of_three(bed)


def test_a_worker_that_vanishes_before_its_gang_meets(whole: Bed) -> None:
    with whole.closed():
        with whole.ordered("vanish", "cpu-0"):
            found = whole.run(trapped(whole, key="vanish"))
        assert found.error <= TOLERANCE, (found.error, found.texts)
        assert "cpu-0 was lost: its process ended" in found.warnings
        assert found.samplings == [ALONE]
        goes_on_without(whole, "cpu-0")


def hang(bed: Bed, worker: str, **options: Any) -> None:
    clock = Clock(0, lambda: None)
    with bed.impatient(worker), bed.ordered("stop", worker, after=2):
        found = bed.run(trapped(bed, **options), on_event=clock)
    lost_one(found, worker, 4)
    assert "as it had not answered for 4 s" in found.warnings and clock.longest_s < NOTICED_S
    bed.wait_for_end(worker)


def test_a_worker_that_hangs_with_a_conditioning_is_noticed(whole: Bed) -> None:
    with whole.closed():
        hang(whole, "cpu-0", cfg=3.0, parallel=BY_CFG)


def test_a_worker_that_hangs_with_tokens_is_noticed(whole: Bed) -> None:
    with whole.closed():
        hang(whole, "cpu-0", cfg=3.0)
        goes_on_without(whole, "cpu-0")


def test_an_idle_worker_dies(bed: Bed) -> None:
    """The next prompt, at once, does without; they come back by themselves."""
    bed.mend()
    with bed.closed():
        for worker in bed.living():
            os.kill(bed.pid(worker), signal.SIGKILL)
        found = bed.run(fresh())
    assert found.error <= TOLERANCE and found.samplings == [ALONE]
    bed.mend()
    gang_of_three(bed)


def test_both_workers_die_in_one_step(whole: Bed) -> None:
    """Three conditionings on three devices: two threads lose their follower at once."""
    options = {"custom_advanced": True, "cfg": 3.0, "parallel": BY_CFG}
    with whole.ordered("die", "cpu-0", "cpu-1", after=1):
        found = whole.run(dual_guided(trapped(whole, **options)))
    assert found.error <= TOLERANCE and "was lost" in found.warnings
    assert found.samplings == ["1 as cfg 3, 3 as one device"]
