"""The shared queue: prompts that anybody queues at this ComfyUI go to the next free device.

A prompt that workers may run is mirrored as a run of one unit. It stays in ComfyUI's queue until
dispatch starts it somewhere, so whatever is done to the queue meanwhile is ComfyUI's own doing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import server

from comfyfleet.comfy import prompts
from comfyfleet.comfy.places import Places
from comfyfleet.comfy.queue import Item, SharedQueue
from comfyfleet.errors import FleetError, RunError
from comfyfleet.extension.queue.audience import Audience
from comfyfleet.extension.queue.book import Book
from comfyfleet.extension.queue.mirror import Mirror, Names
from comfyfleet.fleet import QUEUE, Fleet, new_run_id
from comfyfleet.graph import DISPATCHING, model_key
from comfyfleet.work import Mirrored, Unit

logger = logging.getLogger(__name__)

#: ComfyUI's marks on names of files that only the master has.
_OWN_FILES = ("[output]", "[temp]")
#: Of a prompt's id, in characters: a path of 8 kB is refused.
_MAX_ID = 200


class Sharing:
    """Decides which prompts are shared, and has the mirrors of those. Implements ``Desk``.

    One for the process: what runs elsewhere goes on while sharing is switched off and on again.
    """

    def __init__(
        self, queue: SharedQueue, places: Places, names: Names, audience: Audience, book: Book
    ) -> None:
        self._queue = queue
        self._places = places
        self._book = book
        self._names = names
        self._audience = audience
        self._fleet: Fleet | None = None
        self._mirrors: dict[str, Mirror] = {}
        #: Does the master compute too, and is its thread known to dispatch?
        self.master_computes = True
        self._joined = False
        self._leaving = False

    def start(self, fleet: Fleet, *, master_computes: bool) -> None:
        """Share from now on what is, and what will be, in the queue; also with another fleet."""
        if self._fleet is None:
            self._forget_ended()
        with self._queue.mutex:
            known = fleet is self._fleet
            self.master_computes = master_computes
            self._fleet, self._joined = fleet, self._joined and known
            if master_computes:
                self._take_seat(fleet)  # at once: what fails elsewhere waits for it
        if not known:
            fleet.on_worker_lost(self._names.forget)
            self._queue.share(self)
            return
        if not master_computes:
            self.retract()
        self._queue.wake()

    def stop(self) -> None:
        """Leave the queue to the master, with what no worker has begun.

        What runs elsewhere goes on to its end.
        """
        self._queue.share(None)
        for mirror in list(self._mirrors.values()):
            if mirror.withdraw():
                self._drop(mirror.prompt_id, "the queue is not shared any more")
        with self._queue.mutex:
            fleet, self._fleet = self._fleet, None
            if fleet is not None:
                self._leave_seat(fleet)

    def _forget_ended(self) -> None:
        """Nobody told us of ends while nothing was shared."""
        running = {item[1] for item in self._queue.get_current_queue_volatile()[0]}
        self._mirrors = {key: each for key, each in self._mirrors.items() if key in running}

    # The queue's lock is held: the master's thread takes its seat, and leaves it, by itself too.

    def _take_seat(self, fleet: Fleet) -> None:
        if not self._joined:
            self._joined = True
            fleet.seat.join()

    def _leave_seat(self, fleet: Fleet) -> None:
        if self._joined:
            self._joined = False
            fleet.seat.leave()

    # Desk.

    def is_shared(self, prompt_id: str) -> bool:
        return prompt_id in self._mirrors

    def added(self, item: Item) -> None:
        fleet = self._fleet
        if fleet is None or not math.isfinite(item[0]) or item[1] in self._mirrors:
            return  # what has no place, or no name of its own, stays with the master
        if not _has_address(item[1]) or not _is_free(item[2], fleet.node_classes):
            return
        unit = _unit(item)
        mirror = Mirror(
            item, unit, self._queue, self._places, self._names, self._audience, self._book,
            stop=lambda: fleet.cancel(unit.run_id, "interrupted"), unshare=self._unshare,
            stopped=self._stopped,
        )  # fmt: skip
        self._mirrors[item[1]] = mirror

        try:
            fleet.submit(
                [unit],
                mirror.observe,
                on_end=lambda error: self._over(mirror, error),
                lane=QUEUE,
                priority=item[0],
            )
        except FleetError:
            logger.warning("the fleet is gone: prompt %s stays here", item[1], exc_info=True)
            del self._mirrors[item[1]]

    def taken(self, item: Item, item_id: int) -> None:
        mirror = self._mirrors.get(item[1])
        if mirror is not None and not mirror.with_master:
            self._drop(item[1], "the master took it before it was shared")

    def gone(self, prompt_id: str) -> None:
        mirror = self._mirrors.get(prompt_id)
        self._drop(prompt_id, "deleted from the queue")
        if mirror is not None and self._fleet is not None:
            self._fleet.seat.release(mirror.unit)  # perhaps it was just offered

    def ended(self, prompt_id: str) -> None:
        mirror, fleet = self._mirrors.pop(prompt_id, None), self._fleet
        if mirror is not None and fleet is not None and not mirror.taken:
            fleet.seat.finish(mirror.unit)

    def ready(self) -> None:
        fleet = self._fleet
        if fleet is None:
            return
        if not self.master_computes:
            self._leave_seat(fleet)  # only now, as it has nothing in hand
            return
        self._take_seat(fleet)
        fleet.seat.is_ready()

    def retract(self) -> bool:
        fleet = self._fleet
        if fleet is None or not self._joined:
            return True
        try:
            return fleet.seat.retract()
        except FleetError:
            return True

    def saved(self, prompt_id: str, node_id: str, ui: Mapping[str, Any]) -> None:
        """A node of the master's own was executed, and this is what it has put out."""
        files = self._places.saved_here(prompt_id, node_id, ui)
        self._book.replace(prompt_id, {f"{node_id}/{n}": file for n, file in files.items()})

    def leave(self) -> None:
        """ComfyUI ends: what its fleet can run no more is for the next one."""
        self._leaving = True
        self._book.leave()

    def _unshare(self, prompt_id: str) -> None:
        """No worker can run it any more: the master does, unless it is about to end."""
        if not self._leaving and self._mirrors.pop(prompt_id, None) is not None:
            self._queue.wake()

    def _over(self, mirror: Mirror, error: RunError | None) -> None:
        """Its run has ended; of one that was dropped before it began nobody need hear."""
        if mirror.begun or self._mirrors.get(mirror.prompt_id) is mirror:
            mirror.end(error)

    def _stopped(self, mirror: Mirror) -> int | None:
        """Its owner has cancelled its run, which no worker has. Taken out of the queue, its id.

        None if it was dropped, and if the master runs it, who stops then.
        """
        with self._queue.mutex:
            if self._mirrors.get(mirror.prompt_id) is not mirror:
                return None
            taken = self._queue.take(mirror.prompt_id)
            if taken is None:
                prompts.interrupt_if_running(mirror.prompt_id)
                return None
        if self._fleet is not None:
            self._fleet.seat.release(mirror.unit)  # perhaps it was just offered
        return taken[1]

    def _drop(self, prompt_id: str, reason: str) -> None:
        mirror = self._mirrors.pop(prompt_id, None)
        if mirror is not None:
            self._cancel(mirror, reason)

    def _cancel(self, mirror: Mirror, reason: str) -> None:
        if self._fleet is not None:
            self._fleet.cancel(mirror.unit.run_id, reason)


def _unit(item: Item) -> Unit:
    _, prompt_id, prompt, extra_data, outputs, secrets = item
    client = server.PromptServer.instance.sockets_metadata.get(extra_data.get("client_id"), {})
    mirrored = Mirrored(
        prompt_id=prompt_id,
        extra_data={**extra_data, **secrets},
        outputs=tuple(outputs),
        features=client.get("feature_flags", {}),
    )
    return Unit(
        run_id=new_run_id(),
        index=0,
        prompt=prompt,
        model_key=model_key(prompt),
        mirrored=mirrored,
    )


def _has_address(prompt_id: str) -> bool:
    """Can it be a part of a path, as in ComfyUI's routes? Clients choose what they like."""
    return prompt_id.isprintable() and prompt_id.strip(".") != "" and len(prompt_id) <= _MAX_ID


def _is_free(prompt: Mapping[str, Any], known: frozenset[str]) -> bool:
    """May a worker run it? It needs the nodes, and files that it can see.

    Nodes that use the whole fleet by themselves stay with the master.
    """
    classes = {node["class_type"] for node in prompt.values()}
    return (
        classes <= known
        and not classes & DISPATCHING
        and not any(text.endswith(_OWN_FILES) for text in _texts(prompt))
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)
