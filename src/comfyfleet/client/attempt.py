"""One prompt at a time on one ComfyUI: its end, and how it is stopped before that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from comfyfleet.client.comfyui import ComfyClient
from comfyfleet.errors import RunCancelled, Unreachable

#: Progress is told at most this often: a tiny model's sampler steps hundreds of times a second.
_PROGRESS_INTERVAL_S = 0.1

#: How often a prompt that was interrupted, and still runs, is interrupted again.
_AGAIN_S = 0.3

T = TypeVar("T")


class Attempt:
    """What runs just now. Used on the event loop of its client."""

    def __init__(self, client: ComfyClient) -> None:
        self._client = client
        self._task: asyncio.Task[Any] | None = None
        #: The task that is being stopped, and what sees to that.
        self._stopping: asyncio.Task[Any] | None = None
        self._again: asyncio.Task[None] | None = None

    async def end_of(self, work: Coroutine[Any, Any, T], prompt_id: str) -> T:
        """What ``work``, which runs this prompt, gives. Raises RunCancelled if it was stopped."""
        self._task = asyncio.ensure_future(work)
        try:
            found: T = await self._task
        except asyncio.CancelledError:
            raise RunCancelled(f"prompt {prompt_id} was stopped before it began") from None
        return found

    async def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt. One that had not begun ends without an event, so it is ended here."""
        task = self._task
        running = await self._client.interrupt(prompt_id)
        if task is None or task.done():
            return
        if not running:
            task.cancel()
        elif task is not self._stopping:
            self._stopping = task
            self._again = asyncio.ensure_future(self._interrupt_until_done(task, prompt_id))

    async def _interrupt_until_done(self, task: asyncio.Task[Any], prompt_id: str) -> None:
        """ComfyUI forgets an interrupt that comes after it took a prompt and before it begins."""
        while not (await asyncio.wait({task}, timeout=_AGAIN_S))[0]:
            with suppress(Unreachable):  # which the task will notice
                await self._client.interrupt(prompt_id)


def throttled(on_progress: Callable[[float], None]) -> Callable[[float], None]:
    """``on_progress``, called not too often."""
    last = -_PROGRESS_INTERVAL_S

    def tell(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_INTERVAL_S:
            last = now
            on_progress(fraction)

    return tell
