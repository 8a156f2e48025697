"""A loop of a command's own, which signals end between two of its steps."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, on the main thread; SIGINT and SIGTERM cancel ``work``, which tidies up.

    Whoever handles them otherwise, and may raise, gets them when the loop has ended. What is raised
    in the middle of a step takes it off the loop's list: whoever waits for that step, as all do at
    the end, would wait for ever.
    """
    with _Signals() as signals:
        return asyncio.run(signals.watch(work))


class _Signals:
    """Takes signals while a loop runs, and hands on the first of them afterwards."""

    def __init__(self) -> None:
        self._caught: list[int] = []
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> _Signals:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._cancel) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._caught and kind in (None, asyncio.CancelledError):
            signal.raise_signal(self._caught[0])

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, which signals cancel."""
        self._task = asyncio.current_task()
        if self._task is not None and self._caught:  # while the loop was made
            self._task.cancel()
        return await work

    def _cancel(self, number: int, _frame: FrameType | None) -> None:
        self._caught.append(number)
        if self._task is not None:
            with suppress(RuntimeError):  # its loop has just been closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
