"""Sharing of the queue, switched on and off: by a setting, a route or the command."""

from __future__ import annotations

import atexit
import logging
import math
import threading
from collections.abc import Mapping
from typing import Any

import server

from comfyfleet.comfy.executed import watch_executed
from comfyfleet.comfy.places import Places
from comfyfleet.comfy.queue import SharedQueue, Waiting
from comfyfleet.config import JOURNAL, MASTER_COMPUTES, SHARE, WORKERS, Config
from comfyfleet.errors import ComfyFleetError, InputError
from comfyfleet.extension.owner import owner_folder, read_config
from comfyfleet.extension.queue.audience import Audience
from comfyfleet.extension.queue.book import Book
from comfyfleet.extension.queue.mirror import Names
from comfyfleet.extension.queue.sharing import Sharing
from comfyfleet.fleet import Fleet, Service
from comfyfleet.fleet.journal import Journal
from comfyfleet.work import Policy

logger = logging.getLogger(__name__)

#: How often workers elsewhere are looked for, where there are no others.
_AGAIN_S = 15.0


class Switch:
    """Holds the shared queue of this ComfyUI. Thread-safe."""

    def __init__(self, places: Places, service: Service) -> None:
        """Put a queue that can be shared in the place of ComfyUI's.

        Before ComfyUI's prompt thread starts.
        """
        instance: Any = server.PromptServer.instance
        self._book = Book(places)
        self._queue = SharedQueue(instance, self._book)
        instance.prompt_queue = self._queue
        self._sharing = Sharing(self._queue, places, Names(), Audience(), self._book)
        self._service = service
        service.on_started = self._follow
        self._lock = threading.Lock()
        self._on = False
        #: Does the master compute? None while the queue is not shared, nor soon will be.
        self._computes: bool | None = None
        self._fault = ""
        watch_executed(self._note_saved)
        #: Is it to be shared from the start?
        self._wanted = False

    @property
    def on(self) -> bool:
        """Is the queue shared?"""
        return self._on

    @property
    def on_soon(self) -> bool:
        """Is the queue shared, or will be once its workers are there?"""
        return self._computes is not None

    @property
    def master_computes(self) -> bool:
        """Does the master compute what workers could too? Raises InputError for a wrong setting."""
        computes = self._computes
        return read_config().value(MASTER_COMPUTES) if computes is None else computes

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
            in_use = self._book.is_open or self._wanted
            try:
                config = read_config()
                given = master_computes
                computes = config.value(MASTER_COMPUTES) if given is None else given
                self._expect(computes)
                self._turn_on(config, computes, stagger_s)
            except ComfyFleetError as error:
                self._stop()
                if not in_use:
                    self._book.close()  # as if nobody had asked
                self._note(str(error))
                raise
            finally:
                if not self._on:
                    self._computes = None
                    self._queue.share(None)

    def turn_on_if_set(self) -> None:
        """``turn_on`` in a thread if the setting says so; what goes wrong is logged, and noted."""
        try:
            config = read_config()
            if config.value(SHARE):
                self._expect(config.value(MASTER_COMPUTES))
                self._wanted = True
                threading.Thread(target=self._turn_on_or_note, daemon=True).start()
        except InputError as error:
            self._note(str(error))

    def _expect(self, computes: bool) -> None:
        """It is to be shared: what comes before the workers are there is for them.

        At once, and not in a thread of its own, which prompts might overtake.
        """
        self._computes = computes
        if not self._on and not computes:
            self._queue.share(Waiting())

    def turn_off(self) -> None:
        """Leave the queue to the master; what workers have in hand is finished."""
        self._wanted = False
        with self._lock:
            self._stop()
            self._book.close()

    def interrupt(self, prompt_id: str | None) -> bool:
        """Stop this prompt if it runs on a worker, or all that do; False if this one does not."""
        if prompt_id is None:
            self._queue.interrupt_all_elsewhere()
            return True
        return self._queue.interrupt_elsewhere(prompt_id)

    def _note_saved(self, prompt_id: str, node_id: str, ui: Mapping[str, Any]) -> None:
        if self._on or self._book.is_open:
            self._sharing.saved(prompt_id, node_id, ui)

    def _note(self, fault: str) -> None:
        """Why it is not shared; logged once, though it may be tried again and again."""
        if fault != self._fault:
            logger.error("the queue is not shared: %s", fault)
        self._fault = fault

    def _turn_on_or_note(self) -> None:
        """Again and again where nobody is there yet who is started elsewhere, perhaps later."""
        pause = threading.Event()
        while self._wanted and not self.on:
            try:
                self.turn_on()
            except ComfyFleetError as error:
                if isinstance(error, InputError) or self._service.devices():
                    return
            pause.wait(_AGAIN_S)

    def _turn_on(self, config: Config, computes: bool, stagger_s: float | None) -> None:
        if not self._service.has_workers:
            raise InputError(
                f"the fleet has no worker to share the queue with, as workers is "
                f"{config.value(WORKERS)!r} (auto: each GPU here but the master's own). Set "
                "COMFYFLEET_WORKERS to devices for workers, or add workers elsewhere (`comfyfleet "
                "config add-worker`)."
            )
        if config.value(JOURNAL):
            self._write_down()  # already now: what comes while workers start is to survive as well
        fleet = self._service.fleet()
        self._service.look_for_remotes()  # of those set since it began
        if stagger_s is not None:  # before anything of the queue begins
            fleet.set_policy(Policy(stagger_s=stagger_s))
        self._sharing.start(fleet, master_computes=computes)
        self._restore()  # first: who sees that it is shared sees what was left, too
        self._on, self._fault = True, ""
        self._leave_before_the_fleet()

    def _write_down(self) -> None:
        """Have a journal of all that is here; after a fault, try again."""
        if self._book.is_open and not self._book.fault:
            return
        journal = None if self._book.is_open else _journal()
        with self._queue.mutex:
            if journal is not None:
                self._book.open(journal)
            self._book.fault = ""
            self._book.keep_only(self._queue.record())

    def _leave_before_the_fleet(self) -> None:
        """When ComfyUI ends; what was registered last is called first."""
        atexit.unregister(self._sharing.leave)
        atexit.register(self._sharing.leave)

    def _follow(self, fleet: Fleet) -> None:
        """All workers of the last fleet were given up: what waits is for this one."""
        if not self._on:
            return
        self._sharing.start(fleet, master_computes=self._sharing.master_computes)
        self._leave_before_the_fleet()
        if not self._on:  # switched off meanwhile
            self._sharing.stop()

    def _stop(self) -> None:
        """What is in the queue goes on here; its book stays as it is."""
        self._on = False  # first: see ``_follow``
        self._computes = None
        self._sharing.stop()

    def _restore(self) -> None:
        """Queue again what an earlier master has left."""
        left, instance = self._book.left(), server.PromptServer.instance
        for item in left:
            if math.isfinite(item[0]):  # a client may name any number
                instance.number = max(instance.number, int(item[0]) + 1)
            self._queue.put(item)
        if left:
            logger.info("%d prompts of an earlier run of ComfyUI are queued again", len(left))


def _journal() -> Journal:
    folder = owner_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return Journal(folder / "queue.sqlite3")
