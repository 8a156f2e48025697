"""What the actors of all kinds of workers do alike: run one unit at a time, and be stopped."""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from comfyfleet.errors import ComfyFleetError, RunCancelled, Unfit, Unreachable, WorkflowError
from comfyfleet.work import (
    Failure,
    Happening,
    Mirrored,
    Packed,
    Progress,
    Prompt,
    Result,
    Told,
    Unit,
)

#: ComfyUI answers such calls at once, but for a busy network.
_CALL_TIMEOUT_S = 10.0

T = TypeVar("T")


class Runner(Protocol):
    """Runs prompts on one ComfyUI, on that runner's event loop."""

    async def run(
        self,
        prompt: Prompt,
        prompt_id: str,
        on_progress: Callable[[float], None],
        values: Mapping[str, Packed],
    ) -> Result: ...

    async def mirror(
        self,
        prompt: Prompt,
        asked: Mirrored,
        on_progress: Callable[[float], None],
        tell: Callable[[Told], None],
    ) -> Result: ...

    async def interrupt(self, prompt_id: str) -> None: ...

    async def free(self, request: Mapping[str, Any]) -> None: ...


class UnitActor:
    """Methods that Ray calls, each kind on a thread of its own; see ``fleet.actors``."""

    #: Has it files, models and packs of its own? Then another may run what it refuses.
    elsewhere = False

    def __init__(self, loop: asyncio.AbstractEventLoop, runner: Runner) -> None:
        self._loop = loop
        self._runner = runner
        self._closed = threading.Event()
        self._why_closed = ""
        #: Guards what follows: an interrupt may come between any two steps of ``run``.
        self._lock = threading.Lock()
        #: The ids of the unit that runs, and of its prompt.
        self._running: tuple[str, str] | None = None
        #: Units that were interrupted while they did not run: a word can overtake its unit, or
        #: come while its values are on their way.
        self._unwanted: deque[str] = deque(maxlen=100)

    def run(
        self, unit: Unit, stored: Mapping[str, Any], *, free_first: bool = False
    ) -> Iterator[Happening]:
        """Run a unit: its progress (and what is told of it), then one Result or one Failure.

        ``stored`` is where the unit's values lie in Ray's object store.
        """
        prompt_id = unit.mirrored.prompt_id if unit.mirrored else str(uuid.uuid4())
        if free_first:
            self.free({"unload_models": True, "free_memory": True})
        values = _fetch(stored)
        events: queue.SimpleQueue[Happening | None] = queue.SimpleQueue()
        if not self._begin(unit, prompt_id, values, events.put):
            yield Failure(message="interrupted before it began")
            return
        while isinstance(event := events.get(), Progress | Told):
            yield event
        with self._lock:
            self._running = None
        if event is not None:
            yield event

    def _begin(
        self,
        unit: Unit,
        prompt_id: str,
        values: Mapping[str, Packed],
        put: Callable[[Happening | None], None],
    ) -> bool:
        """Hand a unit to the event loop, which gets its interrupt after it; False if unwanted."""
        with self._lock:
            if unit.id in self._unwanted:
                self._unwanted.remove(unit.id)
                return False
            self._running = (unit.id, prompt_id)
            work = self._work(unit, prompt_id, values, put)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda done: put(self._ending(done)))
        return True

    def _work(
        self,
        unit: Unit,
        prompt_id: str,
        values: Mapping[str, Packed],
        tell: Callable[[Happening], None],
    ) -> Coroutine[Any, Any, Result]:
        def on_progress(fraction: float) -> None:
            tell(Progress(fraction))

        if unit.mirrored is None:
            run: Coroutine[Any, Any, Result] = self._runner.run(
                unit.prompt, prompt_id, on_progress, values
            )
            return run
        mirror: Coroutine[Any, Any, Result] = self._runner.mirror(
            unit.prompt, unit.mirrored, on_progress, tell
        )
        return mirror

    def interrupt(self, unit_id: str) -> None:
        """Stop this unit if it runs here, or comes; ``run`` then ends with a Failure."""
        with self._lock:
            if self._running is None or self._running[0] != unit_id:
                self._unwanted.append(unit_id)
                return
            work = self._runner.interrupt(self._running[1])
            stopping = asyncio.run_coroutine_threadsafe(work, self._loop)
        stopping.result(_CALL_TIMEOUT_S)

    def free(self, request: dict[str, Any]) -> None:
        """Unload models, or free memory, when what runs here has ended."""
        self._call(self._runner.free(request))

    def wait(self) -> str:
        """Block for as long as this worker lives; why it ends, if it knows."""
        self._closed.wait()
        return self._why_closed

    def _ending(self, done: Any) -> Failure | Result | None:
        """A unit's end; None if this worker ends with it, which ``wait`` then says."""
        error = done.exception()
        if isinstance(error, Unreachable):
            self._close(str(error))
            return None
        if self.elsewhere and isinstance(error, WorkflowError):
            return Failure(message=f"its ComfyUI refuses the prompt: {error}", kind="unfit")
        return _in_words(error) if error is not None else done.result()

    def _close(self, why: str) -> None:
        self._why_closed = self._why_closed or why
        self._closed.set()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT_S)


def _fetch(stored: Mapping[str, Any]) -> dict[str, Packed]:
    """The values by digest: views of shared memory where it is this machine's."""
    if not stored:
        return {}
    import ray

    return dict(zip(stored, ray.get(list(stored.values())), strict=True))


def _in_words(error: BaseException) -> Failure:
    """An error as a value: Ray would wrap an exception and lose our fields."""
    failure = getattr(error, "failure", None)
    if isinstance(failure, Failure):
        return failure
    if isinstance(error, Unfit):
        return Failure(message=str(error), kind="unfit")
    if isinstance(error, RunCancelled):
        return Failure(message=f"interrupted: {error}")
    if isinstance(error, ComfyFleetError):
        return Failure(message=str(error))
    return Failure(message=f"{type(error).__name__}: {error}")
