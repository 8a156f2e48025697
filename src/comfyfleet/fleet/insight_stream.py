"""Events for those who watch: bounded, as a slow reader must never slow the fleet."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from comfyfleet.fleet.insight import Happened

#: Events that wait for a reader. A busy worker makes about ten a second.
_WAITING = 1000


class Subscription:
    """The events since it was made. ``wake`` is called, on any thread, when there are some."""

    def __init__(self, wake: Callable[[], None], waiting: int = _WAITING) -> None:
        self._wake = wake
        self._waiting = waiting
        self._lock = threading.Lock()
        self._events: deque[Happened] = deque()
        self._num_missed = 0

    def put(self, event: Happened) -> None:
        """Keep an event for the reader, or count it as missed; returns at once."""
        with self._lock:
            if len(self._events) >= self._waiting:
                self._num_missed += 1
                return
            self._events.append(event)
            first = len(self._events) == 1
        if first:
            self._wake()

    def take(self) -> list[Happened]:
        """All that wait; the last one is of the kind "missed" if there were too many."""
        with self._lock:
            events, missed = list(self._events), self._num_missed
            self._events.clear()
            self._num_missed = 0
        if missed:
            last = events[-1]
            seq, data = last.seq + missed, {"events": missed}
            events.append(Happened(seq=seq, time=last.time, kind="missed", data=data))
        return events


class Stream:
    """Numbers events and hands them to all who have subscribed."""

    def __init__(self) -> None:
        #: The number of the latest event.
        self.seq = 0
        self._readers: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()

    def subscribe(self, reader: Subscription) -> None:
        """From now on it gets all events."""
        with self._lock:
            self._readers = (*self._readers, reader)

    def unsubscribe(self, reader: Subscription) -> None:
        """It gets no more."""
        with self._lock:
            self._readers = tuple(each for each in self._readers if each is not reader)

    def publish(self, kind: str, time: float, data: Mapping[str, Any]) -> None:
        """Tell all readers; one writer only."""
        self.seq += 1
        event = Happened(seq=self.seq, time=time, kind=kind, data=data)
        for reader in self._readers:
            reader.put(event)
