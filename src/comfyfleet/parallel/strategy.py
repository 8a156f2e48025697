"""Which degrees to use for one step, and whether several devices are worth it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from comfyfleet.errors import CannotSplit, InputError
from comfyfleet.parallel.dims import ParallelDims

Strategy = Literal["auto", "cfg", "batch", "sequence", "cfg + sequence"]

#: Strategy -> the axes that it may use.
AXES: dict[str, tuple[str, ...]] = {
    "auto": ("cfg", "sequence", "batch"),
    "cfg": ("cfg",),
    "batch": ("batch",),
    "sequence": ("sequence",),
    "cfg + sequence": ("cfg", "sequence"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked for; ``ulysses`` and ``ring`` are degrees, 0 leaves them to us."""

    strategy: Strategy = "auto"
    ulysses: int = 0
    ring: int = 0

    def check(self, num_ranks: int) -> None:
        """Raise InputError if it can never be done with so many devices."""
        if self.strategy not in AXES:
            raise InputError(f"strategy is {self.strategy!r}; choose one of {', '.join(AXES)}.")
        for name, degree in (("ulysses", self.ulysses), ("ring", self.ring)):
            if degree < 0:
                raise InputError(f"{name} is {degree}; give a degree from 1, or 0 for any.")
            if degree > 1 and "sequence" not in AXES[self.strategy]:
                raise InputError(
                    f"{name} is {degree}, but strategy {self.strategy!r} does not split the "
                    f"sequence; choose auto, sequence or cfg + sequence, or set {name} to 0."
                )
        ParallelDims(ulysses=max(self.ulysses, 1), ring=max(self.ring, 1)).check(num_ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What there is to split in one step. ``unsplittable`` says why its tokens cannot be."""

    conditionings: int
    samples: int
    unsplittable: str = ""


def choose_dims(wish: Wish, num_ranks: int, step: Step) -> ParallelDims:
    """The degrees that make one step fastest; with equals, cfg before sequence before batch.

    cfg exchanges least, batch needs whole samples. Raises CannotSplit if there is nothing to split
    on any axis that the wish names.
    """
    found = list(_candidates(wish, num_ranks, step, AXES[wish.strategy]))
    if not found:
        raise CannotSplit(
            f"ulysses {wish.ulysses or 1} x ring {wish.ring or 1} needs more than the "
            f"{num_ranks} devices that are free now."
        )
    best = max(found, key=lambda dims: _merit(dims, step))
    if best.size == 1 < num_ranks and (reason := _nothing_to_split(wish.strategy, step)):
        raise CannotSplit(reason)
    return best


def expected_speedup(dims: ParallelDims, step: Step) -> float:
    """How many times faster a step would be if nothing had to travel."""
    cfg = step.conditionings / _rounds(step.conditionings, dims.cfg)
    batch = step.samples / _rounds(step.samples, dims.batch)
    return cfg * batch * dims.sequence


def _candidates(
    wish: Wish, num_ranks: int, step: Step, axes: tuple[str, ...]
) -> Iterator[ParallelDims]:
    cfgs = range(1, 1 + min(step.conditionings, num_ranks) if "cfg" in axes else 2)
    batches = range(1, 1 + min(step.samples, num_ranks) if "batch" in axes else 2)
    for cfg, batch in product(cfgs, batches):
        left = num_ranks // (cfg * batch)
        for ulysses, ring in _sequences(wish, left, step, axes):
            yield ParallelDims(ulysses=ulysses, ring=ring, cfg=cfg, batch=batch)


def _sequences(
    wish: Wish, left: int, step: Step, axes: tuple[str, ...]
) -> Iterator[tuple[int, int]]:
    """Pairs of degrees that fit; a ring only where it is asked for."""
    if not left:
        return
    if "sequence" not in axes or step.unsplittable:
        yield 1, 1
        return
    ring = wish.ring or 1
    if wish.ulysses:
        if wish.ulysses * ring <= left:
            yield wish.ulysses, ring
        return
    for ulysses in range(1, left // ring + 1):
        yield ulysses, ring


def _merit(dims: ParallelDims, step: Step) -> tuple[float, int, int, int]:
    cfg = -_rounds(step.conditionings, dims.cfg)
    return expected_speedup(dims, step), cfg, dims.sequence, -dims.size


def _nothing_to_split(strategy: str, step: Step) -> str:
    """Why a strategy leaves all to one device; empty if that is what was asked for."""
    what = {"cfg": "one conditioning", "batch": "one picture"}.get(strategy)
    if what is not None:
        return f"strategy {strategy}: this step has {what} only."
    return step.unsplittable if strategy != "auto" else ""


def _rounds(items: int, degree: int) -> int:
    return -(-max(items, 1) // degree)


#: After so many steps on one device, all are tried again.
RETRY_STEPS = 20


class Trial:
    """Is a step faster on all devices or on one? Measures a step of each, then decides.

    The first parallel step warms up (memory, connections) and does not count. The best time of
    each way counts; the way that was chosen goes on to be measured, and where that is one device,
    the other way is tried again now and then: its one step may have been disturbed.
    """

    def __init__(self) -> None:
        self._num_steps = 0
        self._alone_since = 0
        #: Best seconds per step, by "on all devices".
        self._seconds: dict[bool, float] = {}

    @property
    def speedup(self) -> float | None:
        """How many times faster all devices are, once both ways are measured."""
        if len(self._seconds) < 2:
            return None
        return self._seconds[False] / self._seconds[True]

    @property
    def parallel(self) -> bool:
        """Should the next step use all devices?"""
        if self.speedup is None:
            return True not in self._seconds
        return self.speedup > 1.0 or self._alone_since >= RETRY_STEPS

    def note(self, parallel: bool, seconds: float) -> None:
        """Take in how long a step took."""
        self._num_steps += parallel
        self._alone_since = 0 if parallel else self._alone_since + 1
        if not (parallel and self._num_steps == 1):
            self._seconds[parallel] = min(seconds, self._seconds.get(parallel, seconds))
