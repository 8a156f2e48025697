"""How long a unit takes where.

A worker's own times per model come first. For a model that it never ran, its *slowness*
(its times relative to the fleet's, over all models) scales the fleet's pace of that model.
"""

from __future__ import annotations

from comfyfleet.work.state import Estimate, Worker
from comfyfleet.work.units import Unit

_MIN_PACE = 1e-9  # a cached result takes no time; nothing may be divided by that


class Speed:
    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing
        #: model_key -> seconds per cost on a worker of slowness 1
        self._fleet: dict[str, Estimate] = {}

    def record(self, worker: Worker, unit: Unit, seconds: float, *, warm: bool) -> None:
        """Learn from a finished attempt."""
        if unit.cost <= 0:
            return
        pace = max(seconds / unit.cost, _MIN_PACE)
        own = worker.paces.setdefault(unit.model_key, Estimate())
        own.update(pace, warm=warm, smoothing=self.smoothing)
        self._compare(worker, self._fleet.setdefault(unit.model_key, Estimate()), pace, warm)

    def knowledge(self, unit: Unit) -> int:
        """What the fleet knows of such units: 0 nothing, 1 with loading the model, 2 without."""
        fleet = self._fleet.get(unit.model_key)
        return 0 if fleet is None or fleet.value is None else 1 + fleet.warm

    def find_own(self, worker: Worker, unit: Unit) -> float | None:
        """Seconds by this worker's own times for the model."""
        own = worker.paces.get(unit.model_key)
        return None if own is None or own.value is None else own.value * unit.cost

    def find(self, worker: Worker, unit: Unit) -> float | None:
        """Seconds by the best knowledge there is."""
        pace = self.find_pace(worker, unit.model_key)
        return None if pace is None else pace * unit.cost

    def find_pace(self, worker: Worker, model_key: str) -> float | None:
        """Seconds per cost by the best knowledge there is."""
        own = worker.paces.get(model_key)
        if own is not None and own.value is not None:
            return own.value
        fleet = self._fleet.get(model_key)
        if fleet is None or fleet.value is None:
            return None
        return fleet.value * (worker.slowness.value or 1.0)

    def _compare(self, worker: Worker, fleet: Estimate, pace: float, warm: bool) -> None:
        """Split what was measured into the model's part and the worker's."""
        if fleet.value is None or (warm and not fleet.warm):
            # The first sample of its kind is the yardstick: it says nothing about the worker.
            slowness = worker.slowness.value or 1.0
            fleet.update(pace / slowness, warm=warm, smoothing=self.smoothing)
            worker.slowness.update(slowness, warm=False, smoothing=self.smoothing)
            return
        relative = pace / fleet.value
        slowness = worker.slowness.value or relative
        worker.slowness.update(relative, warm=warm, smoothing=self.smoothing)
        fleet.update(pace / slowness, warm=warm, smoothing=self.smoothing)
