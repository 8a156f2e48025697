"""The workers: who is here or will be again, who may serve a run, who is idle."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Collection

from comfyfleet.work.events import WorkerJoined
from comfyfleet.work.state import Run, Scope, Worker, lane_scope, run_scope

#: slowness (infinite if not measured), order of joining, worker: sorts fastest first.
Place = tuple[float, int, Worker]

_NOBODY: list[Place] = []


def place_of(worker: Worker) -> Place:
    slowness = worker.slowness.value
    return (math.inf if slowness is None else slowness, worker.seq, worker)


def _scope_of(event: WorkerJoined) -> Scope:
    if event.only_run is not None:
        return run_scope(event.only_run)
    return None if event.lane is None else lane_scope(event.lane)


class Roster:
    """All workers, with a count of those who serve each run, now or when they are back."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        #: Lost, and coming back.
        self.absent: dict[str, Worker] = {}
        #: Scope -> workers that are not stuck
        self._num_able: Counter[Scope] = Counter()
        #: only_run -> its workers
        self._own: dict[str, list[Worker]] = {}
        self._order = itertools.count()

    def find(self, worker_id: str) -> Worker | None:
        """The worker, here or coming back."""
        return self.workers.get(worker_id) or self.absent.get(worker_id)

    def add(self, event: WorkerJoined) -> Worker:
        """Enter a new worker, or one that comes back: of that the speed is remembered."""
        worker = self.absent.get(event.worker_id)
        if worker is None:
            worker = Worker(id=event.worker_id, seq=next(self._order))
        else:
            self.remove(worker)
        worker.only_run, worker.scope = event.only_run, _scope_of(event)
        worker.trusted = event.trusted
        self.workers[worker.id] = worker
        self._count(worker)
        return worker

    def remove(self, worker: Worker) -> None:
        """Forget a worker that is here or was to come back."""
        self.workers.pop(worker.id, None)
        self.absent.pop(worker.id, None)
        if not worker.stuck:
            self._num_able[worker.scope] -= 1
        if worker.only_run is not None:
            own = self._own[worker.only_run]
            own.remove(worker)
            if not own:
                del self._own[worker.only_run], self._num_able[worker.scope]

    def expect(self, worker: Worker) -> None:
        """The worker is gone, and will be back as a new process."""
        self.remove(worker)
        worker.stuck, worker.lent, worker.model_key = "", False, None
        self.absent[worker.id] = worker
        self._count(worker)

    def set_stuck(self, worker: Worker, why: str) -> None:
        """Set why it is stuck; an empty text: it is not."""
        if bool(worker.stuck) != bool(why):
            self._num_able[worker.scope] += -1 if why else 1
        worker.stuck = why

    def num_able(self, run: Run, barred: Collection[str] = ()) -> int:
        """How many workers may take a unit of the run, now or when they are free."""
        num = sum(self._num_able[scope] for scope in run.scopes)
        return num - sum(self.is_able(worker_id, run) for worker_id in barred)

    def is_able(self, worker_id: str, run: Run) -> bool:
        worker = self.find(worker_id)
        return worker is not None and worker.serves(run)

    def able(self, run: Run, barred: Collection[str]) -> list[Worker]:
        """Those whom ``num_able`` counts."""
        known = (*self.workers.values(), *self.absent.values())
        return [each for each in known if each.serves(run) and each.id not in barred]

    def only_for(self, run_id: str) -> list[Worker]:
        return list(self._own.get(run_id, ()))

    def _count(self, worker: Worker) -> None:
        self._num_able[worker.scope] += 1
        if worker.only_run is not None:
            self._own.setdefault(worker.only_run, []).append(worker)

    def stuck_ids(self) -> list[str]:
        return [worker.id for worker in self.workers.values() if worker.stuck]


class Bench:
    """The idle workers, fastest first, by what they serve and which model they hold."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        #: (scope, model held; None: any) -> sorted places
        self._lines: dict[tuple[Scope, str | None], list[Place]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, worker: Worker) -> bool:
        return worker.id in self._places

    def seat(self, worker: Worker) -> None:
        """Add the worker, which is not here, if it is idle."""
        if worker.state != "idle":
            return
        place = self._places[worker.id] = place_of(worker)
        for key in {(worker.scope, None), (worker.scope, worker.model_key)}:
            bisect.insort(self._lines.setdefault(key, []), place)

    def discard(self, worker: Worker) -> None:
        place = self._places.pop(worker.id, None)
        if place is None:
            return
        for key in {(worker.scope, None), (worker.scope, worker.model_key)}:
            line = self._lines[key]
            del line[bisect.bisect_left(line, place)]
            if not line:
                del self._lines[key]

    def lend(self, worker: Worker) -> None:
        """Take an idle worker away, so that no unit meets it."""
        self.discard(worker)
        worker.lent, worker.model_key = True, None

    def take_back(self, worker: Worker | None) -> None:
        """A lent worker is free again; nothing to do for one that was lost meanwhile."""
        if worker is not None and worker.lent:
            worker.lent = False
            self.seat(worker)

    def line(self, run: Run, model: str | None = None) -> list[Place]:
        """Idle workers that may serve the run, and hold ``model`` if one is given."""
        lines = [line for scope in run.scopes if (line := self._lines.get((scope, model)))]
        if len(lines) > 1:
            return sorted(itertools.chain(*lines))
        return lines[0] if lines else _NOBODY
