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

#: How often a prompt that was stopped, and has not ended, is stopped again.
_AGAIN_S = 0.3

T = TypeVar("T")


class Attempt:
    """What runs just now. Used on the event loop of its client."""

    def __init__(self, client: ComfyClient) -> None:
        self._client = client
        self._task: asyncio.Task[Any] | None = None
        #: What sees to it that the task ends, and its prompt with it.
        self._stop: asyncio.Task[None] | None = None

    async def end_of(self, work: Coroutine[Any, Any, T], prompt_id: str) -> T:
        """What ``work``, which runs this prompt, gives. Raises RunCancelled if it was stopped.

        Then nothing of it is left in ComfyUI, where the next prompt would wait behind it.
        """
        self._task, self._stop = asyncio.ensure_future(work), None
        try:
            found: T = await self._task
        except asyncio.CancelledError:
            raise RunCancelled(f"prompt {prompt_id} was stopped before it began") from None
        finally:
            if self._stop is not None:
                await self._stop
        return found

    async def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt, which is the one that runs; returns at once."""
        task = self._task
        if task is not None and not task.done() and self._stop is None:
            self._stop = asyncio.ensure_future(self._until_gone(task, prompt_id))

    async def _until_gone(self, task: asyncio.Task[Any], prompt_id: str) -> None:
        """Stop it again and again: each word can come between two of ComfyUI's own steps.

        ComfyUI forgets an interrupt that comes after it took a prompt and before it begins; a
        prompt may arrive after we have looked for it; and Python loses a task's cancellation that
        comes with the answer it waited for.
        """
        while not task.done():
            with suppress(Unreachable):  # which the task will notice
                if not await self._client.interrupt(prompt_id):
                    task.cancel()  # it ends without an event
            await asyncio.wait({task}, timeout=_AGAIN_S)
        with suppress(Unreachable):  # which whoever runs the next prompt will notice
            while await self._client.interrupt(prompt_id):
                await asyncio.sleep(_AGAIN_S)


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
