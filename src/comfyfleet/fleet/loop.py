"""One thread with one asyncio loop, on which everything of a fleet happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from comfyfleet.errors import FleetError

T = TypeVar("T")


class Loop:
    """Runs ``main`` in its thread until it ends; others hand work over.

    ``on_fault`` is told, on the loop, of an error that ended ``main`` or a spawned task.
    """

    def __init__(
        self, main: Callable[[], Coroutine[Any, Any, None]], on_fault: Callable[[Exception], None]
    ) -> None:
        self._main = main
        self._on_fault = on_fault
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        #: Held while work is handed over: what comes after the last look at it would never run.
        #: By the same thread more than once, as a signal or a finalizer may come meanwhile.
        self._handing = threading.RLock()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, daemon=True, name="comfyfleet")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """True from ``start`` until ``main`` has ended."""
        return self._thread.is_alive()

    # From any thread.

    def post(self, work: Callable[..., object], *args: Any) -> None:
        """Call ``work`` on the loop; returns at once. Nothing happens once the loop is over."""
        with self._handing:
            if self._is_open:
                self._loop.call_soon_threadsafe(work, *args)

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result. Raises FleetError if it is over."""
        if not self.alive:
            work.close()
            raise FleetError("the fleet is not running; start it first.")
        with self._handing:
            if not self._is_open:
                work.close()
                raise FleetError("the fleet has ended.")
            answer = asyncio.run_coroutine_threadsafe(self._while_open(work), self._loop)
        try:
            return answer.result()
        except CancelledError:
            raise FleetError("the fleet has ended.") from None

    # On the loop.

    def time(self) -> float:
        """Seconds of the loop's clock."""
        return self._loop.time()

    def call_at(self, when: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        """Call ``work`` at a time of the loop's clock."""
        return self._loop.call_at(when, work)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the others; an error in it is a fault of ours."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Nobody may wait for what can no longer end.
            self._on_fault(FleetError(f"internal error: {type(error).__name__}: {error}"))
            self._loop.call_exception_handler({"message": "fleet task failed", "exception": error})

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except Exception as error:
            self._on_fault(error)
        finally:
            self._drain()

    async def _while_open(self, work: Coroutine[Any, Any, T]) -> T:
        """Begin it only before the end: what it asks is gone by then, and Ray would start anew."""
        if not self._is_open:
            work.close()
            raise FleetError("the fleet has ended.")
        return await work

    def _drain(self) -> None:
        """End what still waits on the loop: whoever waits for it would wait for ever.

        Nothing takes another step that is not its end: Ray starts anew for whoever uses it.
        """
        with self._handing:
            self._is_open = False
        while True:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(_end_of(tasks))
            if not asyncio.all_tasks(self._loop):
                break
        self._loop.close()


async def _end_of(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait for these, and let begin what was handed over before."""
    await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
