"""Threads that take turns: one computes here, while others wait for what other ranks compute.

ComfyUI evaluates the conditionings of a step one after another in one function. Run once per group
of conditionings, in a thread each, every group gets as far as it can before the next one begins;
only the waiting overlaps, so nothing of ComfyUI runs twice at the same time.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Turns:
    """One lock that whoever computes holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do all; the first in this thread, after the others have begun to wait, or ended.

        Returns their results in order, or raises the first error when all have ended.
        """
        results: list[T | None] = [None] * len(works)
        errors: list[BaseException] = []

        def do(i: int, begun: threading.Event) -> None:
            self._mine.begun = begun
            try:
                with self._lock:
                    results[i] = works[i]()
            except BaseException as error:
                errors.append(error)
            finally:
                del self._mine.begun
                begun.set()

        threads = [self._start(do, i) for i in range(1, len(works))]
        do(0, threading.Event())
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results  # type: ignore[return-value]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let others compute meanwhile. Outside of ``run`` it does nothing."""
        begun = getattr(self._mine, "begun", None)
        if begun is None:
            yield
            return
        self._lock.release()
        begun.set()
        try:
            yield
        finally:
            self._lock.acquire()

    def _start(self, do: Callable[[int, threading.Event], None], i: int) -> threading.Thread:
        """Start a thread in this one's autograd modes and context; return when it waits."""
        context, grad = contextvars.copy_context(), torch.is_grad_enabled()
        inference = torch.is_inference_mode_enabled()
        begun = threading.Event()

        def run() -> None:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                context.run(do, i, begun)

        thread = threading.Thread(target=run, name=f"conditioning-{i}")
        thread.start()
        begun.wait()
        return thread
