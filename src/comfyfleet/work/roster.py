"""The workers: who is here, who may serve a run, who is idle."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Collection

from comfyfleet.work.state import Worker

#: slowness (infinite if not measured), order of joining, worker: sorts fastest first.
Place = tuple[float, int, Worker]

_NOBODY: list[Place] = []


def place_of(worker: Worker) -> Place:
    slowness = worker.slowness.value
    return (math.inf if slowness is None else slowness, worker.seq, worker)


class Roster:
    """All live workers, with a count of those who serve each run."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        #: only_run (None: every run) -> workers that are not stuck
        self._num_able: Counter[str | None] = Counter()
        #: only_run -> its workers
        self._own: dict[str, list[Worker]] = {}
        self._order = itertools.count()

    def add(self, worker_id: str, only_run: str | None) -> Worker:
        worker = Worker(id=worker_id, seq=next(self._order), only_run=only_run)
        self.workers[worker_id] = worker
        self._num_able[only_run] += 1
        if only_run is not None:
            self._own.setdefault(only_run, []).append(worker)
        return worker

    def remove(self, worker: Worker) -> None:
        del self.workers[worker.id]
        if not worker.stuck:
            self._num_able[worker.only_run] -= 1
        if worker.only_run is not None:
            own = self._own[worker.only_run]
            own.remove(worker)
            if not own:
                del self._own[worker.only_run], self._num_able[worker.only_run]

    def set_stuck(self, worker: Worker, stuck: bool) -> None:
        if worker.stuck != stuck:
            worker.stuck = stuck
            self._num_able[worker.only_run] += -1 if stuck else 1

    def num_able(self, run_id: str, barred: Collection[str] = ()) -> int:
        """How many workers may take a unit of the run, now or when they are free."""
        num = self._num_able[None] + self._num_able[run_id]
        for worker_id in barred:
            worker = self.workers.get(worker_id)
            if worker is not None and worker.serves(run_id):
                num -= 1
        return num

    def only_for(self, run_id: str) -> list[Worker]:
        return list(self._own.get(run_id, ()))

    def stuck_ids(self) -> list[str]:
        return [worker.id for worker in self.workers.values() if worker.stuck]


class Bench:
    """The idle workers, fastest first, by what they serve and which model they hold."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        #: (only_run, model held; None: any) -> sorted places
        self._lines: dict[tuple[str | None, str | None], list[Place]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, worker: Worker) -> bool:
        return worker.id in self._places

    def add(self, worker: Worker) -> None:
        place = self._places[worker.id] = place_of(worker)
        for key in {(worker.only_run, None), (worker.only_run, worker.model_key)}:
            bisect.insort(self._lines.setdefault(key, []), place)

    def discard(self, worker: Worker) -> None:
        place = self._places.pop(worker.id, None)
        if place is None:
            return
        for key in {(worker.only_run, None), (worker.only_run, worker.model_key)}:
            line = self._lines[key]
            del line[bisect.bisect_left(line, place)]
            if not line:
                del self._lines[key]

    def lend(self, worker: Worker) -> None:
        """Take an idle worker away, so that no unit meets it."""
        self.discard(worker)
        worker.lent, worker.model_key = True, None

    def take_back(self, worker: Worker | None) -> None:
        """A lent worker is idle again; nothing to do for one that was lost meanwhile."""
        if worker is not None and worker.lent:
            worker.lent = False
            self.add(worker)

    def line(self, run_id: str, model: str | None = None) -> list[Place]:
        """Idle workers that may serve the run, and hold ``model`` if one is given."""
        every = self._lines.get((None, model), _NOBODY)
        own = self._lines.get((run_id, model), _NOBODY)
        return sorted(every + own) if every and own else every or own
