"""A client of ComfyUI's own HTTP API: run a prompt, follow it, stop it. It imports no ComfyUI."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import aiohttp

from comfyfleet.comfy.problems import problems_of
from comfyfleet.errors import ComfyFleetError, Problem, RunCancelled, WorkflowError
from comfyfleet.work import Failure, Mirrored

#: Called with the done share (0..1) of the nodes and steps of the running prompt.
OnProgress = Callable[[float], None]

#: A JSON event's name and data, or a binary one's number and bytes.
Message: TypeAlias = tuple[str | int, Any]
OnMessage = Callable[[Message], None]

#: Events that end a prompt. ComfyUI sends "executing" with node None after the history is written.
_ENDED_BADLY = ("execution_error", "execution_interrupted")
#: Events that ComfyUI sends to its clients whether they have a prompt or not.
_ABOUT_THE_SERVER = ("status", "feature_flags", "logs")

#: How torch, CUDA and Python say it.
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|MemoryError|Allocation on device", re.I)


class PromptFailed(ComfyFleetError):
    """A prompt raised while it ran; ``failure`` says where and how."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


class ComfyClient:
    """One ComfyUI by its address. All methods run on the event loop that ``session`` belongs to."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._session = session

    async def run(
        self,
        prompt: Mapping[str, Any],
        prompt_id: str,
        on_progress: OnProgress,
        *,
        asked: Mirrored | None = None,
        on_message: OnMessage | None = None,
    ) -> dict[str, Any]:
        """Run ``prompt`` to its end and return its history entry ({"outputs": ...}).

        ``asked`` is how another ComfyUI's client queued it; ``on_message`` gets what that client
        would get, but for the last event, which says that the history is written.

        Raises WorkflowError if ComfyUI refuses any part of it, PromptFailed with the traceback if
        it fails while running, RunCancelled if it was interrupted.
        """
        client_id = uuid.uuid4().hex
        address = f"{self._url}/ws?clientId={client_id}"
        body: dict[str, Any] = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
        async with self._session.ws_connect(address, max_msg_size=0) as socket:
            if asked is not None:
                await socket.send_json({"type": "feature_flags", "data": dict(asked.features)})
                own = {key: value for key, value in asked.extra_data.items() if key != "client_id"}
                body |= {"extra_data": own, "partial_execution_targets": list(asked.outputs)}
            await self._queue_whole(body)
            await self._follow(socket, prompt, prompt_id, on_progress, on_message)
        entry = await self.history(prompt_id)
        if entry is None:
            raise ComfyFleetError(f"ComfyUI at {self._url} has no history of prompt {prompt_id}.")
        return entry

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """ComfyUI's record of a prompt that has ended."""
        async with self._session.get(f"{self._url}/history/{prompt_id}") as response:
            entry: dict[str, Any] | None = (await response.json()).get(prompt_id)
        return entry

    async def free(self, request: Mapping[str, Any]) -> None:
        """Pass on what somebody asked of ComfyUI's own /free: unload models, free memory."""
        await self._post("/free", dict(request))

    async def interrupt(self, prompt_id: str) -> bool:
        """Stop this prompt whether it waits or runs; other prompts go on.

        True if it runs, and so will end with an event; one that only waited is gone without any.
        """
        await self._post("/queue", {"delete": [prompt_id]})
        await self._post("/interrupt", {"prompt_id": prompt_id})
        async with self._session.get(f"{self._url}/queue") as response:
            running = (await response.json())["queue_running"]
        return any(item[1] == prompt_id for item in running)

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
        async with self._session.post(f"{self._url}/prompt", json=body) as response:
            answer = await response.json()
        problems = problems_of(answer.get("error"), answer.get("node_errors"), prompt)
        if not problems and response.status >= 400:
            problems = [Problem(message=f"ComfyUI answered {response.status}: {answer}")]
        if problems:
            # ComfyUI runs the outputs that are valid and drops the others: never half of a prompt.
            await self.interrupt(prompt_id)
            raise WorkflowError(problems)

    async def _follow(
        self,
        socket: aiohttp.ClientWebSocketResponse[Any],
        prompt: Mapping[str, Any],
        prompt_id: str,
        on_progress: OnProgress,
        on_message: OnMessage | None,
    ) -> None:
        progress = _Progress(prompt)
        ending: Message | None = None
        async for raw in socket:
            event, data = _message(raw)
            if not isinstance(event, str):
                if event is not None and on_message is not None:
                    on_message((event, data))
                continue
            # Packs send events of their own, with anything in them: as this client has no other
            # prompt, they are about this one.
            named = data.get("prompt_id") if isinstance(data, Mapping) else None
            if named is None and on_message is not None and event not in _ABOUT_THE_SERVER:
                on_message((event, data))
            if named != prompt_id:
                continue
            if event == "executing" and data.get("node") is None:
                return _raise_if(ending)
            if on_message is not None:
                on_message((event, data))
            if event in _ENDED_BADLY:
                ending = (event, data)
            elif progress.take(event, data):
                on_progress(progress.fraction)
        raise ComfyFleetError(f"ComfyUI at {self._url} closed its connection during a prompt.")

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._session.post(f"{self._url}{path}", json=body) as response:
            response.raise_for_status()


def _message(raw: aiohttp.WSMessage) -> tuple[str | int | None, Any]:
    """What came on the web socket; an event of None is of no interest."""
    if raw.type is aiohttp.WSMsgType.TEXT:
        message = json.loads(raw.data)
        return message.get("type"), message.get("data") or {}
    if raw.type is aiohttp.WSMsgType.BINARY:
        return struct.unpack(">I", raw.data[:4])[0], raw.data[4:]
    return None, None


def _raise_if(ending: Message | None) -> None:
    """Raise what an event that ends a prompt badly means."""
    if ending is None:
        return
    event, data = ending
    if event == "execution_interrupted":
        raise RunCancelled(f"prompt {data['prompt_id']} was interrupted")
    message = f"{data.get('exception_type')}: {data.get('exception_message')}".strip()
    raise PromptFailed(
        Failure(
            message=message,
            traceback="".join(data.get("traceback") or ()),
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
