"""ComfyUI's own queue, from which others than its own thread may take prompts too.

It stands in the place of ``PromptServer.prompt_queue`` from before ComfyUI's prompt thread starts.
Without a ``Desk`` it is ComfyUI's queue, and goes in the same order as with one.
"""

from __future__ import annotations

import copy
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import execution

#: ComfyUI's entry: number, prompt id, prompt, extra data, outputs to execute, secrets.
Item: TypeAlias = tuple[float, str, dict[str, Any], dict[str, Any], list[str], dict[str, Any]]


class Desk(Protocol):
    """Who decides where prompts run. All calls return at once; the queue's lock may be held."""

    def is_shared(self, prompt_id: str) -> bool:
        """May it run elsewhere? Such items are taken when the desk says so, by ``take``."""

    def added(self, item: Item) -> None: ...

    def taken(self, item: Item, item_id: int) -> None:
        """The master's own thread has it now."""

    def gone(self, prompt_id: str) -> None:
        """It was deleted before anybody took it."""

    def ended(self, prompt_id: str) -> None:
        """It is in the history."""

    def ready(self) -> None:
        """The master's own thread would take a shared prompt; see ``SharedQueue.offer``."""

    def retract(self) -> bool:
        """It would not any more. False if an offer is on its way, which must be taken."""


class Recorder(Protocol):
    """Who writes down what is in the queue, shared or not. The queue's lock is held."""

    def put(self, item: Item) -> None:
        """It waits. One that is known already is written down anew."""

    def start(self, prompt_id: str) -> None:
        """It runs, here or elsewhere."""

    def end(self, prompt_id: str, *, well: bool = True) -> None:
        """It has ended or was deleted; ``well`` if it has not failed and was not stopped."""


class Waiting:
    """A desk at which nobody takes anything yet. Implements ``Desk``."""

    def is_shared(self, prompt_id: str) -> bool:
        return True

    def added(self, item: Item) -> None: ...

    def taken(self, item: Item, item_id: int) -> None: ...

    def gone(self, prompt_id: str) -> None: ...

    def ended(self, prompt_id: str) -> None: ...

    def ready(self) -> None: ...

    def retract(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Ending:
    """What the history says of a prompt: ComfyUI's outputs and meta, and its status."""

    result: Mapping[str, Any]
    status: Mapping[str, Any]


class SharedQueue(execution.PromptQueue):
    """See the module. Only public methods of ComfyUI's queue are extended.

    Clients name their prompts, and may give two the same name: of these one is shared, and
    written down, at a time, and none overtakes it.
    """

    def __init__(self, server: Any, recorder: Recorder) -> None:
        super().__init__(server)
        self._recorder = recorder
        self._desk: Desk | None = None
        #: How often the desk was another one.
        self._changes = 0
        #: Prompt id -> what stops it, of all that run elsewhere: also when nothing is shared now.
        self._stops: dict[str, Callable[[], None]] = {}
        #: Prompt id -> the prompt of that name whose turn it is: it is written down, and shared.
        self._admitted: dict[str, Item] = {}
        #: The prompt that the desk gave the master's thread.
        self._offered: str | None = None

    def share(self, desk: Desk | None) -> None:
        """Ask this desk from now on, or nobody."""
        with self.mutex:
            if desk is not self._desk:
                self._desk = desk
                self._changes += 1
                self._offered = None
            if desk is not None:
                for prompt_id in dict.fromkeys(item[1] for item in sorted(self.queue, key=_turn)):
                    desk.added(self._next_of(prompt_id))
            self.not_empty.notify_all()

    def record(self) -> set[str]:
        """Have all that is here written down, as if it came now; the ids."""
        with self.mutex:
            named: dict[str, Item] = {}
            for item in (*self.currently_running.values(), *sorted(self.queue, key=_turn)):
                named.setdefault(item[1], item)
            for item in named.values():
                self._recorder.put(item)
            for item in self.currently_running.values():
                self._recorder.start(item[1])
            return set(named)

    def wake(self) -> None:
        """Let the master's thread look again at what it may run."""
        with self.mutex:
            self.not_empty.notify_all()

    def offer(self, prompt_id: str) -> None:
        """The master's thread shall take this prompt; after ``Desk.ready`` only."""
        with self.mutex:
            self._offered = prompt_id
            self.not_empty.notify_all()

    def take(
        self, prompt_id: str, stop: Callable[[], None] | None = None
    ) -> tuple[Item, int] | None:
        """Take a prompt out, as running; None if it is not there any more.

        ``stop`` is called to stop it, if it runs elsewhere.
        """
        with self.mutex:
            if all(item[1] != prompt_id for item in self.queue):
                return None
            if stop is not None:
                self._stops[prompt_id] = stop
            return self._take(self._next_of(prompt_id))

    def give_back(self, item_id: int) -> None:
        """A prompt that was taken by ``take`` waits again."""
        with self.mutex:
            item = self.currently_running.pop(item_id)
            self._stops.pop(item[1], None)
            self._admitted[item[1]] = item
            heapq.heappush(self.queue, item)
            self.server.queue_updated()

    def finish(self, item_id: int, ending: Ending) -> None:
        """A prompt that was taken by ``take`` has ended."""
        status = execution.PromptQueue.ExecutionStatus(
            status_str=ending.status["status_str"],
            completed=ending.status["completed"],
            messages=ending.status["messages"],
        )
        self.task_done(
            item_id, dict(ending.result), status, process_item=lambda item: item[:5] + item[6:]
        )

    # ComfyUI's own.

    def put(self, item: Item) -> None:
        with self.mutex:
            if not self._has(item[1]):
                self._admit(item)
            super().put(item)

    def get(self, timeout: float | None = None) -> tuple[Item, int] | None:
        desk = self._desk
        found = self._get_unshared(timeout) if desk is None else self._get_from(desk, timeout)
        if found is not None and self._desk is not None:
            self._desk.taken(*found)
        return found

    def task_done(
        self,
        item_id: int,
        history_result: dict[str, Any],
        status: Any,
        process_item: Callable[[Any], Any] | None = None,
    ) -> None:
        with self.mutex:
            prompt_id = self.currently_running[item_id][1]
            self._stops.pop(prompt_id, None)
            super().task_done(item_id, history_result, status, process_item)
            self._recorder.end(prompt_id, well=status is not None and status.completed)
            if self._desk is not None:
                self._desk.ended(prompt_id)
            self._admit_next(prompt_id)

    def wipe_queue(self) -> None:
        with self.mutex:
            gone = [item[1] for item in self.queue]
            super().wipe_queue()
            self._tell_gone(gone)

    def delete_queue_item(self, function: Callable[[Item], bool]) -> bool:
        with self.mutex:
            before = Counter(item[1] for item in self.queue)
            deleted: bool = super().delete_queue_item(function)
            self._tell_gone(before - Counter(item[1] for item in self.queue))
            return deleted

    def interrupt_if_running(self, prompt_id: str) -> bool:
        """As newer ComfyUI has it, for prompts that run elsewhere too."""
        if self.interrupt_elsewhere(prompt_id):
            return True
        stopped: bool = super().interrupt_if_running(prompt_id)
        return stopped

    def interrupt_elsewhere(self, prompt_id: str) -> bool:
        """Stop a prompt that runs elsewhere; False if it does not."""
        with self.mutex:
            stop = self._stops.get(prompt_id)
        if stop is not None:
            stop()
        return stop is not None

    def interrupt_all_elsewhere(self) -> None:
        """Stop all that run elsewhere."""
        with self.mutex:
            prompt_ids = list(self._stops)
        for prompt_id in prompt_ids:
            self.interrupt_elsewhere(prompt_id)

    def _tell_gone(self, prompt_ids: Iterable[str]) -> None:
        running = {item[1] for item in self.currently_running.values()}
        for prompt_id in sorted(set(prompt_ids) - running):
            self._recorder.end(prompt_id)
            if self._desk is not None:
                self._desk.gone(prompt_id)
            self._admit_next(prompt_id)

    def _has(self, prompt_id: str) -> bool:
        return any(item[1] == prompt_id for item in (*self.currently_running.values(), *self.queue))

    def _next_of(self, prompt_id: str) -> Item:
        """The waiting prompt of that name whose turn it is: not another one put before it."""
        named: list[Item] = [item for item in self.queue if item[1] == prompt_id]
        admitted = self._admitted.get(prompt_id)
        return next((item for item in named if item is admitted), min(named, key=_turn))

    def _admit(self, item: Item) -> None:
        self._admitted[item[1]] = item
        self._recorder.put(item)
        if self._desk is not None:
            self._desk.added(item)

    def _admit_next(self, prompt_id: str) -> None:
        """It is gone: now comes the next one of that name."""
        self._admitted.pop(prompt_id, None)
        named = [item for item in self.queue if item[1] == prompt_id]
        if named:
            self._admit(min(named, key=_turn))
            self.not_empty.notify_all()

    def _get_unshared(self, timeout: float | None) -> tuple[Item, int] | None:
        """As ComfyUI's own, which would take what comes while it waits though it is shared then."""
        with self.mutex:
            while not self.queue and self._desk is None:
                self.not_empty.wait(timeout)
                if timeout is not None:
                    break
            if not self.queue or self._desk is not None:
                return None
            return self._take_first(self.queue)

    def _get_from(self, desk: Desk, timeout: float | None) -> tuple[Item, int] | None:
        """What only the master may run, else what the desk offers; None if there is nothing now."""
        with self.mutex:
            own = self._take_own(desk)
            if own is not None:
                return own
            changes = self._changes
            desk.ready()
            if self._offered is None:
                self.not_empty.wait(timeout)
        # Without the lock, which an offer needs.
        retracted = desk.retract()
        with self.mutex:
            while not retracted and self._offered is None and self._changes == changes:
                self.not_empty.wait()
            if self._offered is not None:
                offered, self._offered = self._offered, None
                return self.take(offered)
            return self._take_own(desk) if self._changes == changes else None

    def _take_own(self, desk: Desk) -> tuple[Item, int] | None:
        """The next prompt that only the master may run."""
        own = [item for item in self.queue if not desk.is_shared(item[1])]
        return self._take_first(own) if own else None

    def _take_first(self, items: Iterable[Item]) -> tuple[Item, int]:
        """By turn, as ComfyUI's own, but see the class."""
        return self._take(self._next_of(min(items, key=_turn)[1]))

    def _take(self, item: Item) -> tuple[Item, int]:
        self.queue[:] = [each for each in self.queue if each is not item]
        heapq.heapify(self.queue)
        return item, self._begin(item)

    def _begin(self, item: Item) -> int:
        item_id: int = self.task_counter
        self.currently_running[item_id] = copy.deepcopy(item)
        self.task_counter += 1
        self._recorder.start(item[1])
        self.server.queue_updated()
        return item_id


def _turn(item: Item) -> tuple[float, str]:
    """Prompts cannot be compared."""
    return item[:2]
