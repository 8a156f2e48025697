"""Long work in a thread that nobody waits for when the process ends: reading a large file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As ``asyncio.to_thread``, whose threads Python joins at its end, whatever they do."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            found = work(*args, **kwargs)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(found)

    threading.Thread(target=run, name=f"background {work.__name__}", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(done))
