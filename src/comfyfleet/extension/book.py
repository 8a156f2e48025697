"""What a shared queue writes down, so that it survives a restart of the master."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from comfyfleet.comfy.places import Entry
from comfyfleet.comfy.queue import Item
from comfyfleet.errors import ComfyFleetError
from comfyfleet.fleet.journal import Journal, QueuedPrompt

logger = logging.getLogger(__name__)


class Book:
    """The journal in ComfyUI's terms; without a journal nothing is written down.

    A journal that cannot be written, as its disk is full, does not keep prompts from running: it
    is said, once, and ``fault`` tells it to whoever asks.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._placed: dict[str, dict[str, Entry]] = {}
        self._leaving = False
        self.fault = ""

    @property
    def note(self) -> str:
        """What the owner should know of the journal; empty if it is in order."""
        return self.fault or (self._journal.note if self._journal else "")

    def unfinished(self) -> list[Item]:
        """What an earlier master has left, as entries for ComfyUI's queue."""
        if self._journal is None:
            return []
        found = self._journal.unfinished()
        for entry in found:
            self._placed[entry.prompt_id] = {k: _parsed(v) for k, v in entry.placed.items()}
        return [_item(entry) for entry in found]

    def placed(self, prompt_id: str) -> Mapping[str, Entry]:
        """The files that an earlier master has placed for a prompt; asked once."""
        return self._placed.pop(prompt_id, {})

    def put(self, item: Item) -> None:
        """Queued. Secrets are not written down; what an earlier master has placed stays known."""
        placed = {key: "\n".join(entry) for key, entry in self._placed.get(item[1], {}).items()}
        self._write(lambda journal: journal.put(_entry(item, placed)))

    def start(self, prompt_id: str) -> None:
        """Somebody runs it."""
        self._write(lambda journal: journal.start(prompt_id))

    def place(self, prompt_id: str, key: str, entry: Entry) -> None:
        """It has saved a file."""
        self._write(lambda journal: journal.place(prompt_id, key, "\n".join(entry)))

    def end(self, prompt_id: str, *, well: bool = True) -> None:
        """It has ended, or was deleted. What fails while ComfyUI ends has not ended."""
        if well or not self._leaving:
            self._write(lambda journal: journal.end(prompt_id))

    def leave(self) -> None:
        """ComfyUI ends, and so prompts will fail that are none the worse for it."""
        self._leaving = True

    def clear(self) -> None:
        """Nothing shall be queued again."""
        self._write(lambda journal: journal.end_all_but(()))

    def close(self) -> None:
        """Let another master have it; from now on nothing is written down. May be called twice."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _write(self, write: Callable[[Journal], None]) -> None:
        journal = self._journal
        if journal is None:
            return
        try:
            write(journal)
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


def _parsed(text: str) -> Entry:
    kind, subfolder, name = text.split("\n")
    return (kind, subfolder, name)
