"""When to look after which attempt."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from comfyfleet.work.state import Attempt


class Alarms:
    """A lazy heap: one live entry per attempt, moved only when it comes to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Attempt]] = []
        self._order = itertools.count()

    def set(self, attempt: Attempt, at: float) -> None:
        attempt.alarm = at
        if attempt.alarm_entry is None or at < attempt.alarm_entry:
            self._push(attempt, at)

    def next(self) -> float | None:
        while self._heap:
            at, _, attempt = self._heap[0]
            if not attempt.over and at == attempt.alarm_entry == attempt.alarm:
                return at
            heapq.heappop(self._heap)
            if not attempt.over and at == attempt.alarm_entry and attempt.alarm is not None:
                self._push(attempt, attempt.alarm)
        return None

    def due(self, now: float) -> Iterator[Attempt]:
        """Take out the attempts whose alarm has come; a new alarm may be set meanwhile."""
        while (at := self.next()) is not None and at <= now:
            attempt = heapq.heappop(self._heap)[2]
            attempt.alarm = attempt.alarm_entry = None
            yield attempt

    def _push(self, attempt: Attempt, at: float) -> None:
        attempt.alarm_entry = at
        heapq.heappush(self._heap, (at, next(self._order), attempt))
