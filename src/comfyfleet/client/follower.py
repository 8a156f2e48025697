"""What a ComfyUI tells on its web socket of one prompt, and how that prompt ended.

Packs send events with anything in them, and a hostile worker anything at all: what makes no sense
is passed over, as the history says how the prompt ended.
"""

from __future__ import annotations

import json
import math
import re
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import aiohttp

from comfyfleet.client.link import BROKEN
from comfyfleet.client.texts import plain
from comfyfleet.errors import ComfyFleetError, RunCancelled
from comfyfleet.work import Failure, Prompt

#: Called with the done share (0..1) of the nodes and steps of the running prompt.
OnProgress = Callable[[float], None]

#: A JSON event's name and data, or a binary one's number and bytes.
Message: TypeAlias = tuple[str | int, Any]
OnMessage = Callable[[Message], None]

#: Events that end a prompt. ComfyUI sends "executing" with node None after the history is written.
_ENDED_BADLY = ("execution_error", "execution_interrupted")
#: Events that ComfyUI sends to its clients whether they have a prompt or not.
_ABOUT_THE_SERVER = ("status", "feature_flags", "logs")

#: How torch, its allocators for CPU and DirectML, CUDA and Python say it.
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|Allocation on device|can't allocate memory"
    r"|not enough (?:GPU video )?memory",
    re.I,
)
#: Of an error's text and traceback.
_MAX_TEXT = 100_000
#: Beyond these a worker floods us: at once, and further ones per second. A tiny model's sampler
#: makes some hundred events a second, a large preview is a megabyte.
_MAX_BYTES, _BYTES_PER_S = 512 << 20, 64 << 20
_MAX_EVENTS, _EVENTS_PER_S = 100_000, 5_000


class PromptFailed(ComfyFleetError):
    """A prompt raised while it ran; ``failure`` says where and how."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


class Follower:
    """What ComfyUI tells of one prompt: who is told what, and how it ended."""

    def __init__(
        self,
        prompt: Prompt,
        prompt_id: str,
        on_progress: OnProgress,
        on_message: OnMessage | None,
    ) -> None:
        self.prompt_id = prompt_id
        #: Has the prompt ended, in whatever way?
        self.ended = False
        self._progress = _Progress(prompt)
        self._on_progress = on_progress
        self._on_message = on_message
        self._ending: Message | None = None
        self._executed: set[str] = set()
        self._flood = _Flood()

    async def listen(
        self, socket: aiohttp.ClientWebSocketResponse[Any], patience_s: float | None
    ) -> None:
        """Take what comes, until the prompt has ended or the connection has.

        Silence of ``patience_s`` ends it too: what is on the way may be lost there. Raises
        PromptFailed if it is flooded.
        """
        with suppress(*BROKEN):
            while not self.ended:
                raw = await socket.receive(patience_s)
                if raw.type in _CLOSED:
                    return
                if patience_s is not None:
                    self._flood.count(len(raw.data or b""))
                self._take(*_message(raw))

    def finish(self, entry: Mapping[str, Any]) -> None:
        """Tell what a broken connection has swallowed; raise if the prompt ended badly."""
        for node_id, output in entry.get("outputs", {}).items():
            if node_id not in self._executed:
                named = {"node": node_id, "display_node": node_id, "prompt_id": self.prompt_id}
                self._take("executed", {**named, "output": output})
        if self._ending is None:
            for event, data in (entry.get("status") or {}).get("messages", ()):
                if event in _ENDED_BADLY:
                    self._take(event, data)
        _raise_if(self._ending)

    def _take(self, event: str | int | None, data: Any) -> None:
        if not isinstance(event, str):
            if event is not None:
                self._tell((event, data))
            return
        # Packs' own events name no prompt: as this client has no other, they are about this one.
        named = data.get("prompt_id") if isinstance(data, Mapping) else None
        if named is None and event not in _ABOUT_THE_SERVER:
            self._tell((event, data))
        if named == self.prompt_id:
            self._take_own(event, data)

    def _take_own(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "executing" and data.get("node") is None:
            self.ended = True
            return
        self._tell((event, data))
        if event in _ENDED_BADLY:
            self._ending = (event, data)
        elif event == "executed":
            self._executed.add(str(data.get("node")))
        elif self._progress.take(event, data):
            self._on_progress(self._progress.fraction)

    def _tell(self, message: Message) -> None:
        if self._on_message is not None:
            self._on_message(message)


_CLOSED = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


class _Flood:
    """Counts what comes."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._bytes = self._events = 0

    def count(self, num_bytes: int) -> None:
        """One more event. Raises PromptFailed if no ComfyUI would send so many."""
        self._bytes += num_bytes
        self._events += 1
        seconds = time.monotonic() - self._begun
        if (
            self._bytes > _MAX_BYTES + seconds * _BYTES_PER_S
            or self._events > _MAX_EVENTS + seconds * _EVENTS_PER_S
        ):
            told = f"{self._events} events of {self._bytes} bytes in {seconds:.0f} s"
            raise PromptFailed(Failure(message=f"it sent {told}; no ComfyUI tells so much"))


def _message(raw: aiohttp.WSMessage) -> tuple[str | int | None, Any]:
    """What came on the web socket; an event of None is of no interest."""
    if raw.type is aiohttp.WSMsgType.BINARY and len(raw.data) >= 4:
        return struct.unpack(">I", raw.data[:4])[0], raw.data[4:]
    if raw.type is not aiohttp.WSMsgType.TEXT:
        return None, None
    try:
        message = json.loads(raw.data)
    except (ValueError, RecursionError):
        return None, None
    event = message.get("type") if isinstance(message, dict) else None
    return (event, message.get("data") or {}) if isinstance(event, str) else (None, None)


def _raise_if(ending: Message | None) -> None:
    """Raise what an event that ends a prompt badly means."""
    if ending is None:
        return
    event, data = ending
    if event == "execution_interrupted":
        raise RunCancelled(f"prompt {data.get('prompt_id')} was interrupted")
    kind, said = plain(data.get("exception_type"), 200), data.get("exception_message")
    message = f"{kind}: {plain(said, _MAX_TEXT, lines=True)}".strip()
    trace = data.get("traceback")
    lines = [str(each) for each in trace] if isinstance(trace, list) else []
    raise PromptFailed(
        Failure(
            message=message,
            traceback=plain("".join(lines), _MAX_TEXT, lines=True),
            node_id=plain(data.get("node_id"), 200) or None,
            class_type=plain(data.get("node_type"), 200) or None,
            kind="out_of_memory" if OUT_OF_MEMORY.search(message) else "error",
        )
    )


class _Progress:
    """The done share of a prompt: each node counts one, a running node by its steps."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._total = max(1, len(prompt))
        self._done: set[str] = set()
        self._running: str | None = None
        self._part = 0.0

    @property
    def fraction(self) -> float:
        return min(1.0, (len(self._done) + self._part) / self._total)

    def take(self, kind: str, data: Mapping[str, Any]) -> bool:
        """Note one event; True if the share may have changed."""
        if kind == "execution_cached":
            nodes = data.get("nodes")
            self._done.update(map(str, nodes if isinstance(nodes, list) else ()))
        elif kind == "executing":
            self._finish()
            self._running = str(data.get("node"))
        elif kind == "progress":
            self._part = _share(data.get("value"), data.get("max"))
        else:
            return False
        return True

    def _finish(self) -> None:
        if self._running is not None:
            self._done.add(self._running)
        self._running, self._part = None, 0.0


def _share(value: Any, top: Any) -> float:
    try:
        found = float(value) / max(1.0, float(top))
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(1.0, max(0.0, found)) if math.isfinite(found) else 0.0
