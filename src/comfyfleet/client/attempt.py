"""One prompt at a time on one ComfyUI: its end, and how it is stopped before that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from comfyfleet.client.comfyui import ComfyClient
from comfyfleet.errors import RunCancelled, Unreachable

logger = logging.getLogger(__name__)

#: Progress is told at most this often: a tiny model's sampler steps hundreds of times a second.
_PROGRESS_INTERVAL_S = 0.1

#: A prompt that was stopped, and has not ended, is stopped again after this time, then less often.
_AGAIN_S, _MAX_PAUSE_S = 0.3, 10.0
#: How long a ComfyUI may not answer that has perhaps still got it.
_LAST_LOOK_S = 30.0

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
        comes with the answer it waited for. Raises Unreachable if nothing can be said of it.
        """
        pauses_s = _pauses_s()
        while not task.done():
            try:
                if not await self._client.interrupt(prompt_id):
                    task.cancel()  # it ends without an event
            except Unreachable as error:
                logger.warning("prompt %s cannot be stopped so far: %s", prompt_id, error)
            await asyncio.wait({task}, timeout=next(pauses_s))
        await self._until_out(prompt_id)

    async def _until_out(self, prompt_id: str) -> None:
        """See the prompt gone, whose task has ended. Raises Unreachable after some time of it."""
        told = time.monotonic()
        for pause_s in _pauses_s():
            try:
                if not await self._client.interrupt(prompt_id):
                    return
                told = time.monotonic()
            except Unreachable:
                if time.monotonic() > told + _LAST_LOOK_S:
                    raise
            await asyncio.sleep(pause_s)


def _pauses_s() -> Iterator[float]:
    """Between two tries to stop a prompt: soon at first."""
    pause_s = _AGAIN_S
    while True:
        yield pause_s
        pause_s = min(1.5 * pause_s, _MAX_PAUSE_S)


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
