"""A client of ComfyUI's own HTTP API: run a prompt, follow it, stop it. It imports no ComfyUI."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import aiohttp

from comfyfleet.client.follower import Follower, Message, OnMessage, OnProgress
from comfyfleet.client.link import Link
from comfyfleet.client.problems import problems_of
from comfyfleet.client.texts import plain
from comfyfleet.errors import ComfyFleetError, Problem, Unreachable, WorkflowError
from comfyfleet.work import Mirrored, Prompt

__all__ = ["ComfyClient", "Message", "OnMessage", "OnProgress"]

#: How long to wait before a broken connection is made again.
_RETRY_S = 1.0
#: The history of a prompt that ComfyUI does not know.
_NO_RECORD = "{}"


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
        it fails while running, RunCancelled if it was interrupted, Unreachable if it is gone. If
        it is cancelled, the prompt may run on: see ``interrupt``.
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
            await follower.listen(socket, self._link.patience_s)
        while not follower.ended:
            await self._go_on(address, follower)
        entry = await self.history(prompt_id)
        if entry is None:
            raise ComfyFleetError(f"ComfyUI at {self._link.url} has no history of {prompt_id}.")
        follower.finish(entry)
        return entry

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """ComfyUI's record of a prompt that has ended."""
        found = (await self._get(f"/history/{quote(prompt_id, safe='')}")).get(prompt_id)
        if found is not None and not _is_record(found):
            raise Unreachable(self._link.url, "its history of a prompt makes no sense")
        return found

    async def has_record(self, prompt_id: str) -> bool:
        """Is a prompt that has ended in its history? That is not sent. Raises Unreachable."""
        path = f"/history/{quote(prompt_id, safe='')}"
        async with self._link.request("HEAD", path) as response:
            return response.status != 200 or response.content_length != len(_NO_RECORD)

    async def free(self, request: Mapping[str, Any]) -> None:
        """Pass on what somebody asked of ComfyUI's own /free: unload models, free memory."""
        await self._post("/free", dict(request))

    async def interrupt(self, prompt_id: str) -> bool:
        """Stop this prompt whether it waits or runs; other prompts go on.

        True if it is there still: it runs, and so will end with an event, or has just arrived. One
        that only waited is gone without any.
        """
        await self._post("/queue", {"delete": [prompt_id]})
        await self._post("/interrupt", {"prompt_id": prompt_id})
        return prompt_id in _queued(await self._get("/queue"), "queue_running", "queue_pending")

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
            if not await self._knows(follower.prompt_id):
                raise Unreachable(self._link.url, "it was restarted and has lost the prompt")
            await follower.listen(socket, self._link.patience_s)
        if not follower.ended:  # it may close each connection as soon as it is made
            await asyncio.sleep(_RETRY_S)

    @asynccontextmanager
    async def _again(self, address: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse[Any]]:
        """The connection, made again for as long as the link's patience lasts."""
        async with AsyncExitStack() as stack:
            yield await self._link.patiently(
                lambda: stack.enter_async_context(self._link.socket(address))
            )

    async def _queue_whole(self, body: Mapping[str, Any]) -> None:
        """Queue the prompt; if cancelled meanwhile, it has arrived, or will not any more."""
        queueing = asyncio.ensure_future(self._queue(body))
        try:
            await asyncio.shield(queueing)
        except asyncio.CancelledError:
            while not queueing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({queueing})
            queueing.exception()  # looked at: nobody waits for it any more
            raise

    async def _queue(self, body: Mapping[str, Any]) -> None:
        prompt, prompt_id = body["prompt"], body["prompt_id"]
        status, answer = await self._link.patiently(self._posting(body))
        answer = answer if isinstance(answer, dict) else {}
        try:
            problems = problems_of(answer.get("error"), answer.get("node_errors"), prompt)
        except (AttributeError, TypeError, ValueError):
            raise Unreachable(self._link.url, "it refused a prompt, not as ComfyUI") from None
        if not problems and status != 200:
            said = plain(str(answer), 500)
            problems = [Problem(message=f"ComfyUI answered {status}: {said}")]
        if problems:
            # ComfyUI runs the outputs that are valid and drops the others: never half of a prompt.
            await self.interrupt(prompt_id)
            raise WorkflowError(problems)
        if answer.get("prompt_id") != prompt_id:
            raise Unreachable(self._link.url, "it queued the prompt under another id")

    def _posting(self, body: Mapping[str, Any]) -> Callable[[], Awaitable[tuple[int, Any]]]:
        """Post the prompt; when called again, only if it has not arrived before."""
        posted = False

        async def post() -> tuple[int, Any]:
            nonlocal posted
            if posted and await self._knows(body["prompt_id"]):
                return 200, {"prompt_id": body["prompt_id"]}
            posted = True
            return await self._link.ask("POST", "/prompt", body)

        return post

    async def _knows(self, prompt_id: str) -> bool:
        """Does it run or wait there, or has it ended?"""
        queue = await self._get("/queue")
        if prompt_id in _queued(queue, "queue_running", "queue_pending"):
            return True
        return await self.history(prompt_id) is not None

    async def _get(self, path: str) -> dict[str, Any]:
        async def get() -> dict[str, Any]:
            status, answer = await self._link.ask("GET", path)
            if status != 200 or not isinstance(answer, dict):
                raise Unreachable(self._link.url, f"it answered {status} to {path}, not as ComfyUI")
            return answer

        return await self._link.patiently(get)

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        status, _ = await self._link.ask("POST", path, dict(body))
        if status >= 300:
            raise Unreachable(self._link.url, f"it answered {status} to {path}, not as ComfyUI")


def _queued(queue: Mapping[str, Any], *names: str) -> set[str]:
    """The ids of the prompts in these lists of ComfyUI's queue."""
    lists = [found for name in names if isinstance(found := queue.get(name), list)]
    items = [item for each in lists for item in each if isinstance(item, list) and len(item) > 1]
    return {item[1] for item in items if isinstance(item[1], str)}


def _is_record(found: Any) -> bool:
    """Is it a history entry, as far as anything here relies on it?"""
    if not isinstance(found, dict):
        return False
    outputs, status = found.get("outputs"), found.get("status") or {}
    messages = status.get("messages", []) if isinstance(status, dict) else None
    return (
        isinstance(outputs, dict)
        and all(isinstance(each, dict) for each in outputs.values())
        and isinstance(messages, list)
        and all(_is_message(each) for each in messages)
    )


def _is_message(found: Any) -> bool:
    named = isinstance(found, list) and len(found) == 2 and isinstance(found[0], str)
    return named and isinstance(found[1], dict)
