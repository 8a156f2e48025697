"""How much memory workers and their devices have; asked only while somebody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import psutil

from comfyfleet.fleet.insight import Memory, Snapshot, WorkerStatus

#: What a device has is asked of its worker, so not for every look at the fleet.
_INTERVAL_S = 5.0

#: Worker id -> free and total bytes of its device.
DeviceMemory: TypeAlias = Mapping[str, tuple[int, int]]


class MemoryWatch:
    """Completes snapshots of one fleet. Thread-safe; ``ask`` may take a second or two."""

    def __init__(
        self, ask: Callable[[], DeviceMemory], timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._timer = timer
        self._lock = threading.Lock()
        self._known: DeviceMemory = {}
        self._asked: float | None = None

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the memory of each worker that is alive."""
        known = self._devices()
        workers = tuple(
            replace(worker, memory=_memory(worker, known)) for worker in snapshot.workers
        )
        return replace(snapshot, workers=workers)

    def _devices(self) -> DeviceMemory:
        with self._lock:
            now = self._timer()
            if self._asked is None or now - self._asked >= _INTERVAL_S:
                self._known, self._asked = self._ask(), now
            return self._known


def _memory(worker: WorkerStatus, known: DeviceMemory) -> Memory:
    if worker.pid is None:
        return Memory()
    free, total = known.get(worker.id, (None, None))
    rss = None if worker.host else rss_of(worker.pid)
    return Memory(rss_bytes=rss, device_free_bytes=free, device_total_bytes=total)


def rss_of(pid: int) -> int | None:
    """Main memory of a process in bytes; None if it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None  # it ended this moment
