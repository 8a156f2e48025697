"""A client of ComfyUI's own HTTP API: run a prompt, follow it, stop it. It imports no ComfyUI."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeAlias

import aiohttp

from comfyfleet.client.link import BROKEN, Link
from comfyfleet.client.problems import problems_of
from comfyfleet.errors import (
    ComfyFleetError,
    Problem,
    RunCancelled,
    Unreachable,
    WorkflowError,
)
from comfyfleet.work import Failure, Mirrored, Prompt

#: Called with the done share (0..1) of the nodes and steps of the running prompt.
OnProgress = Callable[[float], None]

#: A JSON event's name and data, or a binary one's number and bytes.
Message: TypeAlias = tuple[str | int, Any]
OnMessage = Callable[[Message], None]

#: Events that end a prompt. ComfyUI sends "executing" with node None after the history is written.
_ENDED_BADLY = ("execution_error", "execution_interrupted")
#: Events that ComfyUI sends to its clients whether they have a prompt or not.
_ABOUT_THE_SERVER = ("status", "feature_flags", "logs")

#: How long to wait before a broken connection is made again.
_RETRY_S = 1.0

#: How torch, CUDA and Python say it.
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|MemoryError|Allocation on device", re.I)


class PromptFailed(ComfyFleetError):
    """A prompt raised while it ran; ``failure`` says where and how."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


class ComfyClient:
    """One ComfyUI by its address. All methods run on the event loop that ``link`` belongs to."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def run(
        self,
        prompt: Prompt,
        prompt_id: str,
        on_progress: OnProgress,
        *,
        asked: Mirrored | None = None,
        on_message: OnMessage | None = None,
    ) -> dict[str, Any]:
        """Run ``prompt`` to its end and return its history entry ({"outputs": ...}).

        ``asked`` is how another ComfyUI's client queued it; ``on_message`` gets what that client
        would get, but for the last event, which says that the history is written. If the
        connection breaks and the link has patience, it is made again and nothing is missed.

        Raises WorkflowError if ComfyUI refuses any part of it, PromptFailed with the traceback if
        it fails while running, RunCancelled if it was interrupted, Unreachable if it is gone.
        """
        address = f"/ws?clientId={uuid.uuid4().hex}"
        body: dict[str, Any] = {"prompt": prompt, "prompt_id": prompt_id}
        body["client_id"] = address.rpartition("=")[2]
        follower = Follower(prompt, prompt_id, on_progress, on_message)
        async with self._link.socket(address) as socket:
            if asked is not None:
                await socket.send_json({"type": "feature_flags", "data": dict(asked.features)})
                own = {key: value for key, value in asked.extra_data.items() if key != "client_id"}
                body |= {"extra_data": own, "partial_execution_targets": list(asked.outputs)}
            await self._queue_whole(body)
            await follower.listen(socket)
        while not follower.ended:
            await self._go_on(address, follower)
        entry = await self.history(prompt_id)
        if entry is None:
            raise ComfyFleetError(f"ComfyUI at {self._link.url} has no history of {prompt_id}.")
        follower.finish(entry)
        return entry

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """ComfyUI's record of a prompt that has ended."""
        found = (await self._get(f"/history/{prompt_id}")).get(prompt_id)
        return found if isinstance(found, dict) else None

    async def free(self, request: Mapping[str, Any]) -> None:
        """Pass on what somebody asked of ComfyUI's own /free: unload models, free memory."""
        await self._post("/free", dict(request))

    async def interrupt(self, prompt_id: str) -> bool:
        """Stop this prompt whether it waits or runs; other prompts go on.

        True if it runs, and so will end with an event; one that only waited is gone without any.
        """
        await self._post("/queue", {"delete": [prompt_id]})
        await self._post("/interrupt", {"prompt_id": prompt_id})
        running = (await self._get("/queue")).get("queue_running", ())
        return any(item[1] == prompt_id for item in running)

    async def _go_on(self, address: str, follower: Follower) -> None:
        """After a break: connect again, see what has happened meanwhile, and follow."""
        if self._link.patience_s is None:
            raise ComfyFleetError(
                f"ComfyUI at {self._link.url} closed its connection during a prompt."
            )
        async with self._again(address) as socket:
            # In this order: an end after this look comes as an event.
            if await self.history(follower.prompt_id) is not None:
                follower.ended = True
                return
            queue = await self._get("/queue")
            items = (*queue.get("queue_running", ()), *queue.get("queue_pending", ()))
            if all(item[1] != follower.prompt_id for item in items):
                raise Unreachable(self._link.url, "it was restarted and has lost the prompt")
            await follower.listen(socket)

    @asynccontextmanager
    async def _again(self, address: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse[Any]]:
        """The connection, made again for as long as the link's patience lasts."""
        patience_s = self._link.patience_s or 0.0
        async with AsyncExitStack() as stack:
            deadline = asyncio.get_running_loop().time() + patience_s
            while True:
                try:
                    socket = await stack.enter_async_context(self._link.socket(address))
                    break
                except Unreachable:
                    if asyncio.get_running_loop().time() >= deadline:
                        raise
                    await asyncio.sleep(_RETRY_S)
            yield socket

    async def _queue_whole(self, body: Mapping[str, Any]) -> None:
        """Queue the prompt; if cancelled meanwhile, take it back: it may have arrived already."""
        queueing = asyncio.ensure_future(self._queue(body))
        try:
            await asyncio.shield(queueing)
        except asyncio.CancelledError:
            await queueing
            await self.interrupt(body["prompt_id"])
            raise

    async def _queue(self, body: Mapping[str, Any]) -> None:
        prompt, prompt_id = body["prompt"], body["prompt_id"]
        status, answer = await self._link.ask("POST", "/prompt", body)
        answer = answer if isinstance(answer, dict) else {}
        problems = problems_of(answer.get("error"), answer.get("node_errors"), prompt)
        if not problems and status != 200:
            problems = [Problem(message=f"ComfyUI answered {status}: {answer}")]
        if problems:
            # ComfyUI runs the outputs that are valid and drops the others: never half of a prompt.
            await self.interrupt(prompt_id)
            raise WorkflowError(problems)
        if answer.get("prompt_id") != prompt_id:
            raise Unreachable(self._link.url, "it queued the prompt under another id")

    async def _get(self, path: str) -> dict[str, Any]:
        status, answer = await self._link.ask("GET", path)
        if status != 200 or not isinstance(answer, dict):
            raise Unreachable(self._link.url, f"it answered {status} to {path}, not as ComfyUI")
        return answer

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        status, _ = await self._link.ask("POST", path, dict(body))
        if status >= 300:
            raise Unreachable(self._link.url, f"it answered {status} to {path}, not as ComfyUI")


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

    async def listen(self, socket: aiohttp.ClientWebSocketResponse[Any]) -> None:
        """Take what comes, until the prompt has ended or the connection has."""
        with suppress(*BROKEN):
            async for raw in socket:
                self._take(*_message(raw))
                if self.ended:
                    return

    def finish(self, entry: Mapping[str, Any]) -> None:
        """Tell what a broken connection has swallowed; raise if the prompt ended badly."""
        for node_id, output in entry.get("outputs", {}).items():
            if node_id not in self._executed:
                named = {"node": node_id, "display_node": node_id, "prompt_id": self.prompt_id}
                self._take("executed", {**named, "output": output})
        if self._ending is None:
            for event, data in entry.get("status", {}).get("messages", ()):
                if event in _ENDED_BADLY:
                    self._take(event, data)
        _raise_if(self._ending)

    def _take(self, event: str | int | None, data: Any) -> None:
        if not isinstance(event, str):
            if event is not None:
                self._tell((event, data))
            return
        # Packs send events of their own, with anything in them: as this client has no other
        # prompt, they are about this one.
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


def _message(raw: aiohttp.WSMessage) -> tuple[str | int | None, Any]:
    """What came on the web socket; an event of None is of no interest."""
    if raw.type is aiohttp.WSMsgType.TEXT:
        message = json.loads(raw.data)
        return message.get("type"), message.get("data") or {}
    if raw.type is aiohttp.WSMsgType.BINARY and len(raw.data) >= 4:
        return struct.unpack(">I", raw.data[:4])[0], raw.data[4:]
    return None, None


def _raise_if(ending: Message | None) -> None:
    """Raise what an event that ends a prompt badly means."""
    if ending is None:
        return
    event, data = ending
    if event == "execution_interrupted":
        raise RunCancelled(f"prompt {data.get('prompt_id')} was interrupted")
    message = f"{data.get('exception_type')}: {data.get('exception_message')}".strip()
    raise PromptFailed(
        Failure(
            message=message,
            traceback="".join(map(str, data.get("traceback") or ())),
            node_id=data.get("node_id"),
            class_type=data.get("node_type"),
            kind="out_of_memory" if _OUT_OF_MEMORY.search(message) else "error",
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
            self._done.update(data.get("nodes") or ())
        elif kind == "executing":
            self._finish()
            self._running = data.get("node")
        elif kind == "progress":
            self._part = float(data["value"]) / max(1.0, float(data["max"]))
        else:
            return False
        return True

    def _finish(self) -> None:
        if self._running is not None:
            self._done.add(self._running)
        self._running, self._part = None, 0.0
