"""What a shared queue writes down, so that it survives a restart of the master."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from comfyfleet.comfy.places import Entry, Placed, Places
from comfyfleet.comfy.queue import Item
from comfyfleet.errors import ComfyFleetError
from comfyfleet.fleet.journal import Journal, QueuedPrompt

logger = logging.getLogger(__name__)


class Book:
    """The journal in ComfyUI's terms; without one nothing is written down. Implements Recorder.

    One for the process, so that whatever runs while sharing is switched stays written down. A
    journal that cannot be written, as its disk is full, does not keep prompts from running: it
    is said, once, and ``fault`` tells it to whoever asks.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._guard = threading.Lock()
        self._journal: Journal | None = None
        #: What an earlier master has left, and nobody has queued again so far.
        self._left: dict[str, Item] = {}
        #: Prompt id -> what its nodes are, as clients may give one id to different prompts.
        self._asked: dict[str, Any] = {}
        #: Prompt id -> its files, here and of an earlier master, by "node/ordinal".
        self._placed: dict[str, dict[str, Placed]] = {}
        #: Prompt id -> what the master's nodes have saved, in the one attempt that they have here.
        self._saved: dict[str, set[Placed]] = {}
        self._leaving = False
        self.fault = ""

    @property
    def note(self) -> str:
        """What the owner should know of the journal; empty if it is in order."""
        return self.fault or (self._journal.note if self._journal else "")

    @property
    def is_open(self) -> bool:
        """Is there a journal?"""
        return self._journal is not None

    def open(self, journal: Journal) -> None:
        """Write from now on. The queue's lock is held, and what is in it comes next."""
        found = journal.unfinished()
        self._left = {entry.prompt_id: _item(entry) for entry in found}
        for entry in found:
            if self._is_that(entry.prompt_id, entry.prompt):
                there = ((key, self._places.find(text)) for key, text in entry.placed.items())
                placed = {key: file for key, file in there if file is not None}
                known = self.placed(entry.prompt_id)
                known |= placed | known
        self._journal = journal

    def keep_only(self, prompt_ids: Collection[str]) -> None:
        """Nothing else shall be queued again, but for what nobody could queue again so far."""
        self._write(lambda journal: journal.end_all_but({*prompt_ids, *self._left}))

    def left(self) -> list[Item]:
        """What an earlier master has left, to be queued again."""
        return list(self._left.values())

    def placed(self, prompt_id: str) -> dict[str, Placed]:
        """Where a prompt's files lie, also those that an earlier master has placed.

        "<node id>/<ordinal>" -> file. The one mapping that all have of it, until the prompt ends.
        """
        return self._placed.setdefault(prompt_id, {})

    def put(self, item: Item) -> None:
        """Queued. Secrets are not written down; what was placed for it stays known."""
        self._left.pop(item[1], None)
        if not self._is_that(item[1], item[2]):
            self._asked.pop(item[1])
            self._is_that(item[1], item[2])
            self._placed.pop(item[1], None)
        known = self.placed(item[1]).copy()  # its mirror may add to it meanwhile
        placed = {key: str(file) for key, file in known.items()}
        self._write(lambda journal: journal.put(_entry(item, placed)))

    def start(self, prompt_id: str) -> None:
        """Somebody runs it."""
        self._write(lambda journal: journal.start(prompt_id))

    def place(self, prompt_id: str, key: str, file: Placed) -> None:
        """It has saved a file, or is about to."""
        self._write(lambda journal: journal.place(prompt_id, key, str(file)))

    def replace(self, prompt_id: str, files: Mapping[str, Placed]) -> None:
        """The master's nodes have saved files: those of an earlier attempt are taken away.

        Not those of this one, as a pack may execute a node several times. What packs execute by
        themselves, under ids of their own, is none of the queue's prompts.
        """
        placed = self._placed.get(prompt_id)
        if placed is None:
            return
        saved = self._saved.setdefault(prompt_id, set())
        saved.update(files.values())
        for key, file in files.items():
            before, placed[key] = placed.get(key), file
            self.place(prompt_id, key, file)  # before the other goes: one of them is always known
            if before is not None and before not in saved:
                self._places.remove(before)

    def keep(self, entry: Entry, prompt_id: str) -> None:
        """This prompt shows that file too, out of a worker's cache: no other may replace it."""
        for other in [other for other in list(self._placed) if other != prompt_id]:
            placed = self._placed.get(other, {})
            for key in [key for key, file in placed.copy().items() if file.entry == entry]:
                del placed[key]
                self._forget_file(other, key)

    def _forget_file(self, prompt_id: str, key: str) -> None:
        self._write(lambda journal: journal.place(prompt_id, key, ""))

    def end(self, prompt_id: str, *, well: bool = True) -> None:
        """It has ended, or was deleted. What fails while ComfyUI ends has not ended."""
        for known in (self._asked, self._placed, self._saved):
            known.pop(prompt_id, None)
        if well or not self._leaving:
            self._write(lambda journal: journal.end(prompt_id))

    def leave(self) -> None:
        """ComfyUI ends, and so prompts will fail that are none the worse for it."""
        self._leaving = True

    def close(self) -> None:
        """Write no more, and let another master have the journal.

        Nothing shall be queued again but what an earlier master has left and nobody has queued.
        """
        self.keep_only(())
        with self._guard:
            journal, self._journal = self._journal, None
        self._left, self.fault = {}, ""
        if journal is not None:
            journal.close()

    def _is_that(self, prompt_id: str, prompt: Mapping[str, Any]) -> bool:
        """Is it the prompt that is known by that id? If none is, it is from now on."""
        # Without what ComfyUI notes in nodes while it runs them.
        nodes = {key: (node.get("class_type"), node.get("inputs")) for key, node in prompt.items()}
        return bool(self._asked.setdefault(prompt_id, nodes) == nodes)

    def _write(self, write: Callable[[Journal], None]) -> None:
        with self._guard:
            if self._journal is None:
                return
            try:
                write(self._journal)
            except ComfyFleetError as error:
                if not self.fault:
                    logger.exception("the queue is not written down any more")
                self.fault = f"the queue is not written down any more: {error}"


def _entry(item: Item, placed: Mapping[str, str]) -> QueuedPrompt:
    number, prompt_id, prompt, extra_data, outputs, _ = item
    return QueuedPrompt(
        number=number,
        prompt_id=prompt_id,
        prompt=prompt,
        extra_data=extra_data,
        outputs=tuple(outputs),
        placed=placed,
    )


def _item(entry: QueuedPrompt) -> Item:
    prompt: dict[str, Any] = {key: dict(node) for key, node in entry.prompt.items()}
    extra, outputs = dict(entry.extra_data), list(entry.outputs)
    return (entry.number, entry.prompt_id, prompt, extra, outputs, {})
