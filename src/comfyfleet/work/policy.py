"""The numbers of dispatch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When to retry, when to call a worker late, how fast to believe a measurement."""

    #: One failure may be the worker's fault; the same on a second one is the workflow's.
    max_failures: int = 2
    #: Spot machines vanish for their own reasons, four times with the same unit in hand hardly.
    max_losses: int = 4
    #: Sampling time varies by some 20% from unit to unit: three times the usual is no noise.
    deadline_factor: float = 3.0
    #: For a model that this worker must first load, or a speed guessed from other workers.
    guess_factor: float = 10.0
    #: Pauses (swap, a slow disk, thermal limits) that say nothing about a short unit.
    min_deadline_s: float = 60.0
    #: A first unit may load tens of gigabytes from a slow disk; half an hour is beyond that.
    first_patience_s: float = 1800.0
    #: Ten deadlines without an answer: ten minutes at the least, thirty usual times else.
    hard_factor: float = 10.0
    #: ComfyUI notices an interrupt between steps; loading a large model takes minutes.
    interrupt_patience_s: float = 600.0
    #: Weight of the newest measurement; after five units the first one counts for 1/4.
    smoothing: float = 0.3
    #: A worker that waits by the tail rule is asked again after this part of its unit time.
    recheck_fraction: float = 0.25
    #: Floor of the above: very short units must not make the engine tick in a busy loop.
    min_recheck_s: float = 0.05
    #: Bad luck comes twice; a worker that fails thrice in a row, and alone, is broken.
    max_worker_failures: int = 3
    #: Long enough for another program to give back the device's memory.
    quarantine_s: float = 30.0
    #: Doubled with every failure after quarantine: a broken device costs one unit an hour at last.
    max_quarantine_s: float = 3600.0
    #: Seconds between two starts that load a model; 0: all at once. Loading eight large models
    #: at the same time may take more of the host's memory than there is.
    stagger_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "stagger_s" and not value > 0:
                raise ValueError(f"{field.name} is {value}; it must be above 0")
        if not 0 <= self.stagger_s < math.inf:
            raise ValueError(f"stagger_s is {self.stagger_s}; it must be 0 or more")
        if self.smoothing > 1:
            raise ValueError(f"smoothing is {self.smoothing}; it must be at most 1")
        if self.hard_factor <= 1:
            raise ValueError(f"hard_factor is {self.hard_factor}; it must be above 1")
        if self.max_quarantine_s < self.quarantine_s:
            raise ValueError(
                f"max_quarantine_s is {self.max_quarantine_s}; "
                f"it must be at least quarantine_s, {self.quarantine_s}"
            )
