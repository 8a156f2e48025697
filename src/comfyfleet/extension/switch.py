"""Sharing of the queue, switched on and off: by a setting, a route or the command."""

from __future__ import annotations

import atexit
import logging
import math
import threading
from collections.abc import Sequence
from typing import Any

import server

from comfyfleet.comfy.places import Places
from comfyfleet.comfy.queue import Item, SharedQueue
from comfyfleet.config import JOURNAL, MASTER_COMPUTES, SHARE
from comfyfleet.errors import ComfyFleetError, InputError
from comfyfleet.extension.book import Book
from comfyfleet.extension.mirror import Names
from comfyfleet.extension.owner import owner_folder, read_config
from comfyfleet.extension.sharing import Sharing
from comfyfleet.fleet import Service
from comfyfleet.fleet.journal import Journal
from comfyfleet.work import Policy

logger = logging.getLogger(__name__)

#: How often workers elsewhere are looked for, where there are no others.
_AGAIN_S = 15.0


class Switch:
    """Holds the shared queue of this ComfyUI. Thread-safe."""

    def __init__(self, queue: SharedQueue, places: Places, service: Service) -> None:
        self._queue = queue
        self._places = places
        #: Workers outlive a switch, and so does what their files are called here.
        self._names = Names()
        self._service = service
        self._lock = threading.Lock()
        self._sharing: Sharing | None = None
        self._book = Book(None)
        self._fault = ""
        #: Is it to be shared from the start?
        self._wanted = False

    @property
    def on(self) -> bool:
        """Is the queue shared?"""
        return self._sharing is not None

    @property
    def master_computes(self) -> bool:
        """Does the master take prompts that workers could run?"""
        return self._sharing is not None and self._sharing.master_computes

    @property
    def note(self) -> str:
        """What the owner should know: why it is off, or what is wrong with the journal."""
        return self._fault or self._book.note

    def turn_on(
        self, *, master_computes: bool | None = None, stagger_s: float | None = None
    ) -> None:
        """Share the queue; starts the fleet if need be, which takes seconds.

        ``stagger_s``: from now on so long between two loads of a model.

        Raises ComfyFleetError, and then the queue is not shared.
        """
        with self._lock:
            self._stop()
            try:
                self._turn_on(master_computes, stagger_s)
            except ComfyFleetError as error:
                self._fault = str(error)
                raise

    def turn_on_if_set(self) -> None:
        """``turn_on`` in a thread if the setting says so; what goes wrong is logged, and noted."""
        try:
            if read_config().value(SHARE):
                self._wanted = True
                threading.Thread(target=self._turn_on_or_log, daemon=True).start()
        except InputError as error:
            self._fault = str(error)
            logger.error("the queue is not shared: %s", error)

    def turn_off(self) -> None:
        """Leave the queue to the master; what workers have in hand is finished."""
        self._wanted = False
        with self._lock:
            self._stop(forget=True)

    def interrupt(self, prompt_id: str | None) -> bool:
        """Stop this prompt if it runs on a worker, or all that do; False if this one does not."""
        if prompt_id is None:
            self._queue.interrupt_all_elsewhere()
            return True
        return self._queue.interrupt_elsewhere(prompt_id)

    def _turn_on_or_log(self) -> None:
        """Again and again where nobody is there yet who is started elsewhere, perhaps later."""
        pause = threading.Event()
        while self._wanted and not self.on:
            try:
                self.turn_on()
            except ComfyFleetError as error:
                logger.error("the queue is not shared: %s", error)
                if isinstance(error, InputError) or self._service.devices():
                    return
            pause.wait(_AGAIN_S)

    def _turn_on(self, master_computes: bool | None, stagger_s: float | None) -> None:
        if not self._service.has_workers:
            raise InputError(
                "the fleet has no worker to share the queue with: set COMFYFLEET_WORKERS to "
                "devices for workers, or add workers elsewhere (`comfyfleet config add-worker`)."
            )
        config = read_config()
        computes = config.value(MASTER_COMPUTES) if master_computes is None else master_computes
        book = Book(_journal() if config.value(JOURNAL) else None)
        try:
            fleet = self._service.fleet()
            self._service.look_for_remotes()  # of those set since it began
            left = book.unfinished()
        except BaseException:
            book.close()
            raise
        if stagger_s is not None:  # before anything of the queue begins
            fleet.set_policy(Policy(stagger_s=stagger_s))
        sharing = Sharing(self._queue, self._places, self._names, book)
        sharing.start(fleet, master_computes=computes)
        self._sharing, self._book, self._fault = sharing, book, ""
        # Called before the fleet is closed, as that was registered before.
        atexit.register(sharing.leave)
        self._restore(left, book)

    def _stop(self, *, forget: bool = False) -> None:
        if self._sharing is not None:
            self._sharing.stop()
            if forget:
                self._book.clear()
            atexit.unregister(self._sharing.leave)
            self._book.close()
            self._sharing, self._book = None, Book(None)

    def _restore(self, left: Sequence[Item], book: Book) -> None:
        """Queue again what an earlier master has left, and not what this one has or had itself."""
        instance = server.PromptServer.instance
        running, queued = self._queue.get_current_queue_volatile()
        here = {item[1] for item in (*running, *queued)}
        ended = set(self._queue.get_history()) & {item[1] for item in left} - here
        for prompt_id in ended:
            book.end(prompt_id)
        again = [item for item in left if item[1] not in here | ended]
        for item in again:
            if math.isfinite(item[0]):  # a client may name any number
                instance.number = max(instance.number, int(item[0]) + 1)
            self._queue.put(item)
        if again:
            logger.info("%d prompts of an earlier run of ComfyUI are queued again", len(again))


def _journal() -> Journal:
    folder = owner_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return Journal(folder / "queue.sqlite3")


def shared_queue() -> SharedQueue:
    """Put a queue that can be shared in the place of ComfyUI's; before its prompt thread starts."""
    instance: Any = server.PromptServer.instance
    instance.prompt_queue = SharedQueue(instance)
    queue: SharedQueue = instance.prompt_queue
    return queue
