"""Many small pieces of one node's work, computed by all devices: the work of a *job* is spread.

A job gives tasks as they can begin, takes their results in any order, and knows when it is done. A
task becomes a unit of an open run: what is upstream of the node's models (the *template*), a node
that computes one task, and the task's values. This process computes tasks as well, by the same
function. One thread, the *feeder*, has the job to itself, so that tasks go out while this process
computes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from comfyfleet.comfy import prompts
from comfyfleet.comfy.shipped import digest_of
from comfyfleet.comfy.values import pack, unpack
from comfyfleet.errors import ComfyFleetError, FleetError, RunError
from comfyfleet.fleet import Delivery, Fleet, Run, RunEvent
from comfyfleet.fleet.seat import MASTER
from comfyfleet.graph import model_key, shipped_node
from comfyfleet.work import Failure, Packed, Prompt, Result, Unit

logger = logging.getLogger(__name__)

#: How long one wait lasts before the user's cancel button is looked at again.
_WAIT_S = 0.1
#: What tasks may hold that are given out and not back: all that is in flight fits in memory.
_IN_FLIGHT_BYTES = 512 << 20
#: So many tasks are given out in any case, that no device waits for another one.
_MIN_IN_FLIGHT = 8
#: After so many tasks in a row that it has no memory for a device takes no more of a run.
_MAX_SHORT = 2
#: What this process is called among those who compute.
HERE = "this device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A piece of work: plain data and tensors, and what it costs against an average one."""

    index: int
    value: Any
    num_bytes: int
    cost: float = 1.0


class Job(Protocol):
    """What is spread. Used by one thread at a time."""

    @property
    def done(self) -> bool: ...

    def next(self) -> Task | None:
        """A task that may begin now, if there is one; each once, with a new index."""

    def take(self, index: int, value: Any) -> None:
        """What came of a task. Tensors may be read, and not written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The graph of a unit but for its task.

    ``task_node`` is the id of the shipped node that gives the task; it is not in ``prompt``.
    ``values`` are what all units need, by digest.
    """

    prompt: Prompt
    task_node: str
    values: Mapping[str, Packed]

    def unit(self, run_id: str, task: Task, key: str) -> Unit:
        packed = pack([task.value], f"task {task.index}")
        # Tasks of equal content are one result, and may not be one value: each lets go of its own.
        digest = f"{digest_of(packed)}.{task.index}"
        return Unit(
            run_id=run_id,
            index=task.index,
            prompt={**self.prompt, self.task_node: shipped_node(digest)},
            model_key=key,
            cost=task.cost,
            values={**self.values, digest: packed},
            own=(digest,),
        )


@dataclass(frozen=True, slots=True)
class _Local:
    """A result of this process from before there was a run."""

    index: int
    value: Any


@dataclass(frozen=True, slots=True)
class _Short:
    """What this process has no memory for, from before there was a run."""

    task: Task
    error: Exception


@dataclass(frozen=True, slots=True)
class _Ended:
    error: RunError | None


class Spread:
    """One job on its way. Without a ``fleet`` this process computes all of it."""

    def __init__(
        self,
        job: Job,
        compute: Callable[[Any], Any],
        *,
        template: Template | None = None,
        fleet: Future[Fleet] | None = None,
        here: bool = True,
        tell: Callable[[Mapping[str, int]], None] = lambda counts: None,
    ) -> None:
        """``compute``: a task's value to its result, here; on workers the template's node does it.

        Without ``here`` this process computes only if it is alone. ``tell`` is told who has
        computed how many tasks, whenever one is done.
        """
        self._job = job
        self._compute = compute
        self._template = template
        self._fleet = fleet
        self._here = here
        self._tell = tell
        #: What the feeder hears of: results, the fleet, the run's end. None: nothing more comes.
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        #: Given out and not back.
        self._tasks: dict[int, Task] = {}
        #: Those of them that this process takes without a run.
        self._todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        #: Those of them that wait for the fleet.
        self._short: list[_Short] = []
        self._counts: Counter[str] = Counter()
        self._run: Run | None = None
        #: How many tasks in a row this device has had no memory for.
        self._num_short = 0
        #: Is no fleet there, and none coming?
        self._alone = fleet is None
        self._model_key = model_key(template.prompt) if template else ""
        self._over = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Compute all of the job. Raises what a task failed with for good, or the user's cancel.

        When it returns or raises nothing of the job is computed any more.
        """
        feeder = threading.Thread(target=self._feed, name="comfyfleet-feeder", daemon=True)
        feeder.start()
        try:
            while not self._over.is_set():
                prompts.raise_if_interrupted()
                self._compute_one()
        finally:
            self._events.put(None)
            feeder.join()
            if self._run is not None:
                self._run.cancel("the node that asked for it has ended")
        if self._error is not None:
            prompts.raise_if_interrupted()
            raise self._error

    def _compute_one(self) -> None:
        """Wait a moment for a task that this process shall compute, and compute it."""
        run = self._run
        if run is None and not self._here and not self._alone:
            self._over.wait(_WAIT_S)
            return
        if run is None:
            with contextlib.suppress(queue.Empty):
                self._compute_task(self._todo.get(timeout=_WAIT_S))
            return
        unit = run.next_local(_WAIT_S)
        task_here = None if unit is None else self._tasks.get(unit.index)
        if unit is not None and task_here is not None:
            self._compute_unit(run, unit, task_here)

    def _compute_task(self, task: Task) -> None:
        value, error = self._tried(task)
        self._events.put(_Local(task.index, value) if error is None else _Short(task, error))

    def _compute_unit(self, run: Run, unit: Unit, task: Task) -> None:
        value, error = self._tried(task)
        if error is None:
            self._num_short = 0
            run.finish_local(unit, Result(values=pack({"value": [value]}, f"task {task.index}")))
            return
        self._num_short += 1
        run.fail_local(unit, Failure(message=f"{HERE}: {error}", kind="out_of_memory"))
        if self._num_short == _MAX_SHORT:  # so are the next ones, which are alike
            run.leave_local("its memory is too small for tasks as these")

    def _tried(self, task: Task) -> tuple[Any, Exception | None]:
        """A task's result, or that this device has not the memory for it: another one may."""
        try:
            return self._compute(task.value), None
        except Exception as error:
            if self._alone or not prompts.is_out_of_memory(error):
                raise
            told = traceback.format_exc()  # as text: whoever keeps records would keep its frames
            logger.warning("task %d needs more memory than %s has: %s", task.index, HERE, told)
            short = _light(error)
        prompts.free_memory()
        return None, short

    # The feeder.

    def _feed(self) -> None:
        try:
            # What nodes make belongs to this mode, and may be written to in it alone.
            with torch.inference_mode():
                self._serve()
        except BaseException as error:
            self._error = error
            if prompts.is_interruption(error):
                # A progress bar has used it up; who computes here is to stop as well.
                prompts.interrupt()
        finally:
            self._over.set()

    def _serve(self) -> None:
        if self._fleet is not None:
            self._fleet.add_done_callback(self._events.put)
        self._give()
        while not self._job.done:
            event = self._events.get()
            match event:
                case None:
                    return
                case Future():
                    self._meet(event)
                case _Local(index=index, value=value):
                    self._take(index, value, HERE)
                case _Short():
                    self._short.append(event)
                case Delivery():
                    self._take_delivery(event)
                case _Ended(error=error):
                    raise error or ComfyFleetError("the run ended before its last task.")
            self._give()
            self._pass_on()
        if self._run is not None:
            self._run.add((), more=False)

    def _meet(self, fleet: Future[Fleet]) -> None:
        """The fleet is there, or it is not to be had: then this device goes on with what it has."""
        try:
            self._begin_run(fleet.result())
        except FleetError as error:
            logger.warning("this device computes alone, as the fleet cannot be used: %s", error)
        self._alone = self._run is None

    def _begin_run(self, fleet: Fleet) -> None:
        """From now on tasks go to the fleet, of which this process is a part."""
        assert self._template is not None
        classes = {node["class_type"] for node in self._template.prompt.values()}
        if missing := sorted(classes - fleet.node_classes):
            logger.warning("no worker has %s: this device computes alone", ", ".join(missing))
            return
        run = fleet.submit(
            [],
            self._observe,
            on_end=lambda error: self._events.put(_Ended(error)),
            more=True,
        )
        if self._here:
            run.join_local()
        self._run = run
        with contextlib.suppress(queue.Empty):
            while True:
                self._send(self._todo.get_nowait())

    def _observe(self, event: RunEvent) -> None:
        if event.delivery is not None:
            self._events.put(event.delivery)

    def _give(self) -> None:
        """Give out what may begin, as far as there is room for it."""
        while self._has_room() and (task := self._job.next()) is not None:
            self._tasks[task.index] = task
            if self._run is None:
                self._todo.put(task)
            else:
                self._send(task)

    def _pass_on(self) -> None:
        """What this device has no memory for goes to the others, once they are there."""
        if self._alone and self._short:
            raise self._short[0].error
        while self._run is not None and self._short:
            self._send(self._short.pop().task)

    def _has_room(self) -> bool:
        if len(self._tasks) < _MIN_IN_FLIGHT:
            return True
        return sum(task.num_bytes for task in self._tasks.values()) < _IN_FLIGHT_BYTES

    def _send(self, task: Task) -> None:
        assert self._run is not None and self._template is not None
        self._run.add([self._template.unit(self._run.id, task, self._model_key)], more=True)

    def _take_delivery(self, delivery: Delivery) -> None:
        assert self._run is not None
        index, packed = delivery.unit.index, delivery.result.values
        here = delivery.worker_id.partition(":")[0] == MASTER
        name = HERE if here else delivery.worker_id
        if packed is None:
            raise ComfyFleetError(f"{name} returned nothing for task {index}: a node is blocked.")
        # Nobody writes to it, so it need not be copied out of shared memory.
        values = unpack(packed, copy=False)["value"]
        if len(values) != 1:
            raise ComfyFleetError(
                f"{name} returned {len(values)} results for task {index}: a node upstream gives a "
                "list from which a model is made. Give it one entry, or compute without workers."
            )
        self._take(index, values[0], name)
        self._run.forget(index)

    def _take(self, index: int, value: Any, name: str) -> None:
        try:
            self._job.take(index, value)
        except ComfyFleetError as error:
            raise ComfyFleetError(f"{name}: {error}") from error
        del self._tasks[index]
        self._counts[name] += 1
        self._tell(self._counts)


def _light(error: Exception) -> Exception:
    """The error without its traceback and those before it, which hold what was computed so far."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
