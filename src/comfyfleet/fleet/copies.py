"""Copies of models to workers elsewhere, from here or another one, and how far each has come.

They run in a thread of their own, one at a time for each place and each over one connection, so
that results are not kept waiting.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from comfyfleet.client.digests import Digests
from comfyfleet.client.models import (
    FileReader,
    ModelElsewhere,
    ModelFile,
    Reader,
    Sending,
    Site,
    StoreReader,
    Tell,
    send_model,
)
from comfyfleet.errors import ComfyFleetError, InputError

logger = logging.getLogger(__name__)

_PATIENCE_S = 60.0
#: So many that wait or run, and as many that have ended are remembered.
_MAX_OPEN = 200
_MAX_ENDED = 100

CopyState = Literal["waiting", "reading", "sending", "checking", "done", "failed", "cancelled"]
Model: TypeAlias = ModelFile | ModelElsewhere
ENDED: tuple[CopyState, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """How far a copy has come."""

    id: str
    worker: str
    #: The worker that has it; empty: this machine.
    source: str = ""
    folder: str
    file: str
    #: Reading is where it is, for the digest; checking is where it goes.
    state: CopyState = "waiting"
    bytes: int = 0
    total: int
    #: Bytes per second since it began to send.
    rate: float = 0.0
    error: str = ""


class Copies:
    """Thread-safe."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._copies: dict[str, Copy] = {}
        self._tasks: dict[str, Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        #: Whose turn it is, by the place of workers.
        self._turns: dict[str, asyncio.Lock] = {}

    def begin(self, model: Model, site: Site, source: str = "") -> Copy:
        """Begin a copy, or join the one of this file to this worker. Raises InputError, OSError.

        ``source``: the name of the worker whose model it is.
        """
        with self._lock:
            for each in self._copies.values():
                same = (each.worker, each.folder, each.file)
                if each.state not in ENDED and same == (site.name, model.folder, model.name):
                    return each
            if sum(each.state not in ENDED for each in self._copies.values()) >= _MAX_OPEN:
                raise InputError(f"{_MAX_OPEN} copies wait already; let some end first.")
            copy = Copy(
                id=str(next(self._numbers)),
                worker=site.name,
                source=source,
                folder=model.folder,
                file=model.name,
                total=model.size,
            )
            self._copies[copy.id] = copy
            self._forget_old()
            self._tasks[copy.id] = self._start(self._run(copy.id, model, site))
        return copy

    def shown(self) -> list[Copy]:
        """All that wait or run, and the last that have ended; in the order of their beginning."""
        with self._lock:
            return list(self._copies.values())

    def cancel(self, copy_id: str) -> Copy | None:
        """Stop a copy; None if there is none of that name. One that has ended stays as it is."""
        self._change(copy_id, state="cancelled")
        with self._lock:
            found = self._copies.get(copy_id)
            if found is not None and found.state == "cancelled":
                self._tasks[copy_id].cancel()
        return found

    def close(self) -> None:
        """Stop all copies; what has arrived stays there."""
        for each in self.shown():
            self.cancel(each.id)
        if self._loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_others_end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _run(self, copy_id: str, model: Model, site: Site) -> None:
        try:
            async with self._turns.setdefault(site.place, asyncio.Lock()):
                await self._copy(copy_id, model, site)
        except (ComfyFleetError, OSError) as error:
            logger.warning("%s was not copied to %s: %s", model.name, site.name, error)
            self._change(copy_id, state="failed", error=str(error))
        except Exception as error:
            logger.exception("%s was not copied to %s", model.name, site.name)
            self._change(copy_id, state="failed", error=f"{type(error).__name__}: {error}")

    async def _copy(self, copy_id: str, model: Model, site: Site) -> None:
        store = site.open(_PATIENCE_S)
        reader = self._reader(model)
        try:
            if not await store.has_extension():
                raise InputError(
                    f"worker {site.name} has not this extension: install it there, or put "
                    f"{model.name} into its folder {model.folder} by hand."
                )
            self._change(copy_id, state="reading")
            sha256 = await reader.digest()
            await send_model(store, model, reader, sha256, self._teller(copy_id))
            logger.info("%s was copied to %s", model.name, site.name)
        finally:
            await reader.close()
            await store.close()

    def _reader(self, model: Model) -> Reader:
        if isinstance(model, ModelFile):
            return FileReader(model, self._digests)
        return StoreReader(model, _PATIENCE_S)

    def _teller(self, copy_id: str) -> Tell:
        begun: list[tuple[float, int]] = []

        def tell(state: Sending, size: int) -> None:
            now = time.monotonic()
            begun[:] = begun or [(now, size)]
            seconds = now - begun[0][0]
            rate = (size - begun[0][1]) / seconds if seconds > 0 else 0.0
            self._change(copy_id, state=state, bytes=size, rate=max(0.0, rate))

        return tell

    def _change(self, copy_id: str, **changes: Any) -> None:
        with self._lock:
            found = self._copies.get(copy_id)
            if found is not None and found.state not in ENDED:
                self._copies[copy_id] = replace(found, **changes)

    def _forget_old(self) -> None:
        ended = [each.id for each in self._copies.values() if each.state in ENDED]
        for copy_id in ended[:-_MAX_ENDED]:
            del self._copies[copy_id], self._tasks[copy_id]

    def _start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _others_end() -> None:
    """Wait for the other tasks of this loop: even one whose copy is done has yet to hang up."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
