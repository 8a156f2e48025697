"""A client of ComfyUI's own HTTP API: run a prompt, follow it, stop it. It imports no ComfyUI."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from comfyfleet.comfy.problems import problems_of
from comfyfleet.errors import ComfyFleetError, Problem, RunCancelled, WorkflowError
from comfyfleet.work import Failure

#: Called with the done share (0..1) of the nodes and steps of the running prompt.
OnProgress = Callable[[float], None]

#: Events that end a prompt. ComfyUI sends "executing" with node None after the history is written.
_ENDED_BADLY = ("execution_error", "execution_interrupted")


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
        self, prompt: Mapping[str, Any], prompt_id: str, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Run ``prompt`` to its end and return its history entry ({"outputs": ...}).

        Raises WorkflowError if ComfyUI refuses any part of it, PromptFailed with the traceback if
        it fails while running, RunCancelled if it was interrupted.
        """
        client_id = uuid.uuid4().hex
        address = f"{self._url}/ws?clientId={client_id}"
        async with self._session.ws_connect(address, max_msg_size=0) as socket:
            await self._queue_whole(prompt, prompt_id, client_id)
            await self._follow(socket, prompt, prompt_id, on_progress)
        return await self._history(prompt_id)

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

    async def _queue_whole(self, prompt: Mapping[str, Any], prompt_id: str, client_id: str) -> None:
        """Queue the prompt; if cancelled meanwhile, take it back: it may have arrived already."""
        queueing = asyncio.ensure_future(self._queue(prompt, prompt_id, client_id))
        try:
            await asyncio.shield(queueing)
        except asyncio.CancelledError:
            await queueing
            await self.interrupt(prompt_id)
            raise

    async def _queue(self, prompt: Mapping[str, Any], prompt_id: str, client_id: str) -> None:
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
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
    ) -> None:
        progress = _Progress(prompt)
        failure: Mapping[str, Any] | None = None
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event.get("type"), event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "execution_interrupted":
                raise RunCancelled(f"prompt {prompt_id} was interrupted")
            if kind in _ENDED_BADLY:
                failure = data
            elif kind == "executing" and data.get("node") is None:
                return _raise_if(failure)
            elif progress.take(kind, data):
                on_progress(progress.fraction)
        raise ComfyFleetError(f"ComfyUI at {self._url} closed its connection during a prompt.")

    async def _history(self, prompt_id: str) -> dict[str, Any]:
        async with self._session.get(f"{self._url}/history/{prompt_id}") as response:
            entry: dict[str, Any] = (await response.json())[prompt_id]
        return entry

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._session.post(f"{self._url}{path}", json=body) as response:
            response.raise_for_status()


def _raise_if(failure: Mapping[str, Any] | None) -> None:
    if failure is None:
        return
    raise PromptFailed(
        Failure(
            message=f"{failure.get('exception_type')}: {failure.get('exception_message')}".strip(),
            traceback="".join(failure.get("traceback") or ()),
            node_id=failure.get("node_id"),
            class_type=failure.get("node_type"),
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
