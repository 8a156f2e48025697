"""The pending units of one run: who may take which, and which comes first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfyfleet.work.state import Job


class Rank(IntEnum):
    """What is taken first; by index within a rank."""

    RETURNED = 0
    FRESH = 1
    #: A second start of an overdue unit: after everything that nobody has started.
    BACKUP = 2


_Heap = list[tuple[int, int, int]]  # rank, index, token


class Pool:
    """Heaps of pending jobs, one per model and set of barred workers.

    Grouping by the barred workers keeps a lookup short even when a broken worker has failed
    thousands of units. Entries are dropped lazily: one counts only while its token is current.
    """

    __slots__ = ("_heaps", "_jobs", "_next_token", "cost")

    def __init__(self) -> None:
        #: index -> job
        self._jobs: dict[int, Job] = {}
        #: model_key (None: any) -> barred workers -> heap
        self._heaps: dict[str | None, dict[frozenset[str], _Heap]] = {}
        self._next_token = 0
        #: Sum of the costs of all pending jobs.
        self.cost = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.unit.index in self._jobs

    def models(self) -> list[str]:
        """Each model_key that a pending job may have; some may be used up."""
        return [model for model in self._heaps if model is not None]

    def put(self, job: Job, rank: Rank, barred: frozenset[str] = frozenset()) -> None:
        """Make it pending, for all but the ``barred`` workers; replaces its former entry."""
        self.discard(job)
        job.token = self._next_token = self._next_token + 1
        unit = job.unit
        self._jobs[unit.index] = job
        self.cost += unit.cost
        entry = (int(rank), unit.index, job.token)
        for model in (None, unit.model_key):
            heapq.heappush(self._heaps.setdefault(model, {}).setdefault(barred, []), entry)

    def discard(self, job: Job) -> None:
        if self._jobs.pop(job.unit.index, None) is not None:
            self.cost = self.cost - job.unit.cost if self._jobs else 0.0

    def clear(self) -> None:
        self._jobs.clear()
        self._heaps.clear()
        self.cost = 0.0

    def find_first(self, worker_id: str, model: str | None = None) -> Job | None:
        """The job that this worker takes next, of one model or of any."""
        groups = self._heaps.get(model)
        if not groups:
            return None
        best: tuple[int, int, int] | None = None
        for barred, heap in list(groups.items()):
            if worker_id in barred:
                continue
            self._trim(heap)
            if not heap:
                del groups[barred]
            elif best is None or heap[0] < best:
                best = heap[0]
        if not groups:
            del self._heaps[model]
        return None if best is None else self._jobs[best[1]]

    def find_stranded(self, num_able: Callable[[frozenset[str]], int]) -> Job | None:
        """A job that runs nowhere and that nobody may take."""
        for barred, heap in self._heaps.get(None, {}).items():
            if num_able(barred) == 0:
                for entry in sorted(heap):
                    if self._is_valid(entry) and not self._jobs[entry[1]].attempts:
                        return self._jobs[entry[1]]
        return None

    def _trim(self, heap: _Heap) -> None:
        while heap and not self._is_valid(heap[0]):
            heapq.heappop(heap)

    def _is_valid(self, entry: tuple[int, int, int]) -> bool:
        found = self._jobs.get(entry[1])
        return found is not None and found.token == entry[2]
