"""Who is told of a prompt that runs elsewhere: those whom ComfyUI tells of one that runs here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import server

from comfyfleet.comfy.queue import Item

#: Nobody is told these of a prompt that no client has queued; everybody is told all else.
_FOR_ITS_CLIENT = frozenset(
    {
        *("execution_start", "execution_cached", "execution_success", "execution_error"),
        *("executing", "executed"),
    }
)


class Audience:
    """The clients of this ComfyUI. One for the process; used by many threads."""

    def __init__(self) -> None:
        #: Prompt id -> its client, and the node that the client was shown last.
        self._shown: dict[str, tuple[str, str]] = {}
        self._server: Any = server.PromptServer.instance
        self._send = self._server.send
        self._server.send = self._send_and_remind

    def tell(self, item: Item, event: str | int, data: Any) -> None:
        """Tell what ComfyUI has told of a prompt elsewhere."""
        client_id = item[3].get("client_id")
        if client_id is None and event in _FOR_ITS_CLIENT:
            return
        if event == "executing" and isinstance(data, Mapping):
            self._note(item[1], client_id, data)
        if isinstance(event, str):
            self._server.send_sync(event, data, client_id)
        else:
            sending = self._server.send_bytes(event, data, client_id)
            asyncio.run_coroutine_threadsafe(sending, self._server.loop)

    def forget(self, prompt_id: str) -> None:
        """It runs elsewhere no more."""
        self._shown.pop(prompt_id, None)

    def _note(self, prompt_id: str, client_id: Any, data: Mapping[str, Any]) -> None:
        node_id = data.get("display_node", data.get("node"))
        if node_id is None:
            self.forget(prompt_id)
        else:
            self._shown[prompt_id] = (client_id, node_id)

    async def _send_and_remind(self, event: Any, data: Any, sid: str | None = None) -> None:
        """ComfyUI's ``send``. A client that has come back is told what runs, as by ComfyUI."""
        await self._send(event, data, sid)
        # ComfyUI's first word to a client that has connected has its name in it.
        if event == "status" and isinstance(data, dict) and "sid" in data:
            for client_id, node_id in list(self._shown.values()):
                if client_id == sid:
                    await self._send("executing", {"node": node_id}, sid)
