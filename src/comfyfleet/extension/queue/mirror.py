"""One prompt of the shared queue on its way over the workers, as its client shall see it.

Whoever runs it, and however often, the client sees one run: each event once, files in the master's
own folders, one entry in the history. Of several attempts the *front* one is shown; another that
wins instead is shown in its place, with what it had told so far.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from comfyfleet.comfy import inventory
from comfyfleet.comfy.places import Entry, Places, series_of
from comfyfleet.comfy.queue import Ending, Item, SharedQueue
from comfyfleet.errors import RunCancelled, RunError
from comfyfleet.extension.queue.audience import Audience
from comfyfleet.extension.queue.book import Book
from comfyfleet.extension.queue.record import Record
from comfyfleet.fleet import MASTER, RunEvent
from comfyfleet.work import HISTORY, SavedFile, Told, Unit

logger = logging.getLogger(__name__)

#: Said when the prompt has really ended, and not when an attempt has.
_LAST_WORDS = ("execution_error", "execution_interrupted", "execution_success")


class Names:
    """What the workers' files are called here. One for all mirrors."""

    def __init__(self) -> None:
        #: Worker id -> its name of a file -> ours.
        self._entries: dict[str, dict[Entry, Entry]] = {}
        #: Worker id -> its name of a file -> which file of that name is here.
        self._stamps: dict[str, dict[Entry, tuple[int, int]]] = {}

    def find(self, worker_id: str, file: SavedFile) -> Entry | None:
        """Its name here, if this very file is here already."""
        stamp = self._stamps.get(worker_id, {}).get(file.key)
        if stamp is None or (file.data is not None and stamp != file.stamp):
            return None
        return self._entries.get(worker_id, {}).get(file.key)

    def note(self, worker_id: str, file: SavedFile, ours: Entry) -> None:
        self._entries.setdefault(worker_id, {})[file.key] = ours
        self._stamps.setdefault(worker_id, {})[file.key] = file.stamp

    def drop(self, ours: Collection[Entry]) -> None:
        """These files were taken away."""
        for worker_id, entries in list(self._entries.items()):
            for theirs in [theirs for theirs, here in list(entries.items()) if here in ours]:
                self._stamps[worker_id].pop(theirs, None)

    def forget(self, worker_id: str) -> None:
        """Its process is another one now, which begins to count anew."""
        self._entries.pop(worker_id, None)
        self._stamps.pop(worker_id, None)

    def translated(self, worker_id: str, ui: Mapping[str, Any]) -> dict[str, Any]:
        """A node's output with our names of files."""
        known = self._entries.get(worker_id, {})
        return inventory.with_assets(
            {
                key: [_renamed(each, known) for each in value] if isinstance(value, list) else value
                for key, value in ui.items()
            }
        )


class Mirror:
    """One prompt. ``observe`` and ``end`` are called by the fleet; the rest happens in a thread."""

    def __init__(
        self,
        item: Item,
        unit: Unit,
        queue_: SharedQueue,
        places: Places,
        names: Names,
        audience: Audience,
        book: Book,
        *,
        stop: Callable[[], None],
        unshare: Callable[[str], None],
        stopped: Callable[[Mirror], int | None],
    ) -> None:
        """``stop`` cancels its run; ``unshare`` is told if its run ended before it began.

        ``stopped`` is told if that was by a cancel, and takes the prompt out of the queue, where it
        gives its id there, if nobody else is to run it.
        """
        self.item = item
        self.unit = unit
        #: The worker whose attempt is shown; empty before the first.
        self.front = ""
        #: The master's own thread was given it.
        self.with_master = False
        self._placed = book.placed(item[1])
        self._queue = queue_
        self._places = places
        self._names = names
        self._audience = audience
        self._book = book
        self._record = Record(item)
        self._stop = stop
        self._unshare, self._stopped = unshare, stopped
        self._withdrawn = False
        self._item_id: int | None = None
        self._begun = False
        #: Worker id -> what it told and nobody has seen yet.
        self._told: dict[str, list[Told]] = {}
        self._history: tuple[str, dict[str, Any]] | None = None
        #: Why what a worker told could not be taken.
        self._fault: Exception | None = None
        self._numbers: dict[str, dict[str, int]] = {}
        self._events: queue.SimpleQueue[RunEvent | RunError | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def prompt_id(self) -> str:
        return self.item[1]

    @property
    def taken(self) -> bool:
        """True once a worker has it."""
        return self._item_id is not None

    @property
    def begun(self) -> bool:
        """True once somebody was given it."""
        return self._thread is not None

    def withdraw(self) -> bool:
        """Let no worker begin it; False if one has it."""
        with self._queue.mutex:
            self._withdrawn = not self.taken
            return self._withdrawn

    # The fleet's side: at once.

    def observe(self, event: RunEvent) -> None:
        """Something happened to the unit."""
        self._put(event)

    def end(self, error: RunError | None) -> None:
        """The run is over."""
        self._put(error)

    def _put(self, event: RunEvent | RunError | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._events.put(event)

    # The thread.

    def _work(self) -> None:
        while isinstance(event := self._events.get(), RunEvent):
            try:
                self._take(event)
            except Exception as error:
                logger.exception("prompt %s: a worker's result could not be taken", self.prompt_id)
                self._fault = error
        self._finish(event)

    def _take(self, event: RunEvent) -> None:
        if self.with_master:
            return  # a late worker's attempt may still tell, and save, for nobody
        match event.kind:
            case "started":
                self._start(event.worker_id)
            case "told":
                assert event.told is not None
                self._told[event.worker_id].append(event.told)
                if event.worker_id == self.front:
                    self._show(event.worker_id)
            case "failed":
                logger.warning(
                    "prompt %s on worker %s: %s", self.prompt_id, event.worker_id, event.failure
                )
                self._told.pop(event.worker_id, None)
                self._numbers.pop(event.worker_id, None)
                if event.worker_id == self.front:
                    self.front = next(iter(self._told), "")
                    self._show(self.front)
            case "delivered" if event.worker_id != MASTER:
                self.front = event.worker_id
                self._show(self.front)

    def _start(self, worker_id: str) -> None:
        if worker_id == MASTER:
            self._hand_to_master()
            return
        self._told[worker_id] = []
        self.front = self.front or worker_id
        with self._queue.mutex:
            if self._item_id is not None or self._withdrawn:
                return
            taken = self._queue.take(self.prompt_id, self._stop)
            if taken is None:  # it was deleted, and the run's end is on its way
                return
            self._item_id = taken[1]

    def _hand_to_master(self) -> None:
        """From now on it is an ordinary prompt of this ComfyUI, whose nodes replace these files.

        But not those that no node has named: nobody would know which they replace.
        """
        self._names.drop({file.entry for file in self._placed.values()})
        unnamed = [key for key in self._placed if key.startswith("/")]
        for key in unnamed:
            self._places.remove(self._placed.pop(key))
        if unnamed:
            self._book.put(self.item)
        if self._item_id is not None:
            self._queue.give_back(self._item_id)
            self._item_id = None
        self._audience.forget(self.prompt_id)
        self.with_master = True
        self._queue.offer(self.prompt_id)

    def _show(self, worker_id: str) -> None:
        """Show what the worker has told and nobody has seen."""
        told = self._told.get(worker_id, [])
        while told:
            self._show_one(worker_id, told.pop(0))

    def _show_one(self, worker_id: str, told: Told) -> None:
        event, data = told.event, told.data
        node_id = str(data.get("node", "")) if isinstance(data, Mapping) else ""
        for key, file in zip(_keys(node_id, told.files), told.files, strict=True):
            self._place(worker_id, key, file)
        if event == HISTORY:
            self._history = (worker_id, data)
            return
        if event == "executed" and isinstance(data.get("output"), Mapping):
            data = {**data, "output": self._names.translated(worker_id, data["output"])}
        self._record.take(event, data)
        if event not in _LAST_WORDS and (event != "execution_start" or not self._begun):
            self._begun = True
            self._send(event, data)

    def _place(self, worker_id: str, key: str, file: SavedFile) -> None:
        here = self._names.find(worker_id, file)
        if here is not None:
            self._book.keep(here, self.prompt_id)
            return
        if file.data is None:
            raise FileNotFoundError(
                f"worker {worker_id} has no longer the content of {file.name}. Change an input of "
                "its node, or free the worker's memory, and queue the prompt again."
            )
        numbers = self._numbers.setdefault(worker_id, {})
        # Written down first: killed in between, we would not know the file for ours.
        placed = self._places.place(
            file,
            numbers,
            self._placed.get(key),
            lambda placed: self._book.place(self.prompt_id, key, placed),
        )
        self._placed[key] = placed
        self._names.note(worker_id, file, placed.entry)

    def _send(self, event: str | int, data: Any) -> None:
        self._audience.tell(self.item, event, data)

    # The end.

    def _finish(self, error: RunError | None) -> None:
        if self._item_id is None and isinstance(error, RunCancelled):
            self._item_id = self._stopped(self)
        if self._item_id is None:
            if isinstance(error, RunError) and not isinstance(error, RunCancelled):
                self._unshare(self.prompt_id)  # it failed before anybody began it
            return  # the master has it, or it was deleted
        if error is not None:
            logger.warning("prompt %s: %s", self.prompt_id, error)
        try:
            ending = self._ending(error)
        except Exception as fault:  # what a worker told; without an end ComfyUI would wait for ever
            logger.exception("prompt %s: a worker's history makes no sense", self.prompt_id)
            ending = self._record.failed(fault)
        if ending.status["messages"] and (last := ending.status["messages"][-1])[0] in _LAST_WORDS:
            self._send(*last)
        self._queue.finish(self._item_id, ending)
        self._send("executing", {"node": None, "prompt_id": self.prompt_id})

    def _ending(self, error: RunError | None) -> Ending:
        if isinstance(error, RunCancelled):
            return self._record.interrupted()
        worker_id, history = self._history or ("", {})
        status = history.get("status") or {}
        told_well = status.get("completed") is (error is None)
        if told_well and (error is not None or self._fault is None):
            outputs = {
                node_id: self._names.translated(worker_id, ui)
                for node_id, ui in history["outputs"].items()
            }
            result = {key: history[key] for key in history if key != "status"}
            return Ending({**result, "outputs": outputs}, status)
        told = error or self._fault or RuntimeError("the worker sent no history of this prompt.")
        return self._record.failed(told)


def _keys(node_id: str, files: Sequence[SavedFile]) -> Iterator[str]:
    """By what files of one attempt are known for those of another.

    What no node names is known by its own name: another attempt may get further, and save more.
    """
    seen: Counter[str] = Counter()
    for file in files:
        like = "" if node_id else f"{file.subfolder}/{series_of(file.name)}/"
        yield f"{node_id}/{like}{seen[like]}"
        seen[like] += 1


def _renamed(entry: Any, known: Mapping[Entry, Entry]) -> Any:
    if not isinstance(entry, Mapping) or "filename" not in entry:
        return entry
    theirs = (entry.get("type", ""), entry.get("subfolder", ""), entry["filename"])
    if theirs not in known:
        return entry
    kind, subfolder, name = known[theirs]
    return {**entry, "type": kind, "subfolder": subfolder, "filename": name}
