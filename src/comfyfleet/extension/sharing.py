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

from comfyfleet.comfy.places import Places
from comfyfleet.comfy.queue import Item, SharedQueue
from comfyfleet.errors import FleetError
from comfyfleet.extension.book import Book
from comfyfleet.extension.mirror import Mirror, Names
from comfyfleet.fleet import QUEUE, Fleet, new_run_id
from comfyfleet.graph import DISPATCHING, model_key
from comfyfleet.work import Mirrored, Unit

logger = logging.getLogger(__name__)

#: ComfyUI's marks on names of files that only the master has.
_OWN_FILES = ("[output]", "[temp]")


class Sharing:
    """Decides which prompts are shared, and has the mirrors of those. Implements ``Desk``."""

    def __init__(self, queue: SharedQueue, places: Places, names: Names, book: Book) -> None:
        self._queue = queue
        self._places = places
        self._book = book
        self._names = names
        self._fleet: Fleet | None = None
        self._mirrors: dict[str, Mirror] = {}
        #: Does the master compute too, and is its thread known to dispatch?
        self.master_computes = True
        self._joined = False
        self._leaving = False

    def start(self, fleet: Fleet, *, master_computes: bool) -> None:
        """Share from now on what is, and what will be, in the queue."""
        self.master_computes, self._joined = master_computes, False
        self._fleet = fleet
        fleet.on_worker_lost(self._names.forget)
        self._queue.share(self)

    def stop(self) -> None:
        """Give back what no worker has begun; what runs elsewhere goes on to its end."""
        self._queue.share(None)
        for mirror in list(self._mirrors.values()):
            if mirror.withdraw():
                self._drop(mirror.prompt_id, "the queue is not shared any more")
        fleet, self._fleet = self._fleet, None
        if fleet is not None and self._joined:
            fleet.seat.leave()

    # Desk.

    def is_shared(self, prompt_id: str) -> bool:
        return prompt_id in self._mirrors

    def running(self, item: Item) -> None:
        self._book.put(item)
        self._book.start(item[1])

    def added(self, item: Item) -> None:
        self._book.put(item)
        fleet = self._fleet
        if fleet is None or not math.isfinite(item[0]) or item[1] in self._mirrors:
            return  # what has no place, or no name of its own, stays with the master
        if not _is_free(item[2], fleet.node_classes):
            return
        unit = _unit(item)
        mirror = Mirror(
            item, unit, self._queue, self._places, self._names, self._book,
            stop=lambda: fleet.cancel(unit.run_id, "interrupted"), unshare=self._unshare,
        )  # fmt: skip
        placed = self._book.placed(item[1])
        mirror.placed.update({k: entry for k, entry in placed.items() if self._places.has(entry)})
        self._mirrors[item[1]] = mirror

        try:
            fleet.submit([unit], mirror.observe, on_end=mirror.end, lane=QUEUE, priority=item[0])
        except FleetError:
            logger.warning("the fleet is gone: prompt %s stays here", item[1], exc_info=True)
            del self._mirrors[item[1]]

    def taken(self, item: Item, item_id: int) -> None:
        self._book.start(item[1])
        mirror = self._mirrors.get(item[1])
        if mirror is not None and not mirror.with_master:
            self._drop(item[1], "the master took it before it was shared")

    def gone(self, prompt_id: str) -> None:
        self._book.end(prompt_id)
        mirror = self._mirrors.get(prompt_id)
        self._drop(prompt_id, "deleted from the queue")
        if mirror is not None and self._fleet is not None:
            self._fleet.seat.release(mirror.unit)  # perhaps it was just offered

    def ended(self, prompt_id: str, *, well: bool) -> None:
        self._book.end(prompt_id, well=well)
        mirror, fleet = self._mirrors.pop(prompt_id, None), self._fleet
        if mirror is not None and fleet is not None and not mirror.taken:
            fleet.seat.finish(mirror.unit)

    def ready(self) -> None:
        fleet = self._fleet
        if fleet is None or not self.master_computes:
            return
        if not self._joined:
            self._joined = True
            fleet.seat.join()
        fleet.seat.is_ready()

    def retract(self) -> bool:
        fleet = self._fleet
        if fleet is None or not self._joined:
            return True
        try:
            return fleet.seat.retract()
        except FleetError:
            return True

    def leave(self) -> None:
        """ComfyUI ends: what its fleet can run no more is for the next one."""
        self._leaving = True
        self._book.leave()

    def _unshare(self, prompt_id: str) -> None:
        """No worker can run it any more: the master does, unless it is about to end."""
        if not self._leaving and self._mirrors.pop(prompt_id, None) is not None:
            self._queue.wake()

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
