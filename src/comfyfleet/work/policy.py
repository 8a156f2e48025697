"""The numbers of dispatch."""

from __future__ import annotations

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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} is {value}; it must be above 0")
        if self.smoothing > 1:
            raise ValueError(f"smoothing is {self.smoothing}; it must be at most 1")
        if self.hard_factor <= 1:
            raise ValueError(f"hard_factor is {self.hard_factor}; it must be above 1")
