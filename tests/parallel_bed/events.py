"""What a client sees of a prompt: the events over /ws in order, and the latent that was saved."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import torch
from safetensors.torch import load_file

from tests.support import Master, error_of

#: Kinds of binary messages, and what our client says to get previews with their node.
PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4
FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
#: Newer ComfyUI take the preview method from each prompt; 0.3.75 has it from our pack.
EXTRA = {"preview_method": "latent2rgb"}
NODE_EVENTS = {"executing", "executed", "progress", "execution_error", "execution_interrupted"}
PROMPT_EVENTS = {"execution_start", "execution_success"}


@dataclass(frozen=True)
class Event:
    """One message about a prompt, without what differs from run to run.

    Kinds are ComfyUI's, ``preview``, and ``text`` for what a node tells its user. ``executing``
    without a node is the end of the prompt.
    """

    kind: str
    node: str | None = None
    value: int | None = None
    maximum: int | None = None
    #: Of a preview's bytes; equal events may have different pictures.
    digest: str = field(default="", compare=False)
    #: What a node said; equal events may have different texts.
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class Recording:
    """A prompt's events from start to end, and its history entry."""

    prompt_id: str
    events: list[Event]
    entry: dict[str, Any]

    def about(self, *nodes: str) -> list[Event]:
        """The events of these nodes only: those of a sampler do not depend on what was cached."""
        return [event for event in self.events if event.node in nodes]

    def count(self, kind: str) -> int:
        return sum(event.kind == kind for event in self.events)

    @property
    def texts(self) -> list[str]:
        """What nodes said while the prompt ran, in order."""
        return [event.text for event in self.events if event.kind == "text"]


def record(
    master: Master,
    prompt: Mapping[str, Any],
    *,
    on_event: Callable[[Event], None] | None = None,
    timeout_s: float = 240.0,
) -> Recording:
    """Queue a prompt as a browser does and record it to its end, whatever that is.

    ``on_event`` is called with each event as it comes: it may interrupt, or kill a worker.
    """

    async def limited() -> tuple[str, list[Event]]:
        return await asyncio.wait_for(_record(master.port, prompt, on_event), timeout_s)

    prompt_id, events = asyncio.run(limited())
    return Recording(prompt_id, events, master.finish(prompt_id))


def latent(master: Master, entry: Mapping[str, Any], node: str = "save") -> torch.Tensor:
    """The latent that a prompt saved, exactly; asserts that the prompt succeeded."""
    assert entry["status"]["status_str"] == "success", error_of(entry)
    (saved,) = entry["outputs"][node]["latents"]
    path = master.base / "output" / saved["subfolder"] / saved["filename"]
    return load_file(path)["latent_tensor"]


async def _record(
    port: int, prompt: Mapping[str, Any], on_event: Callable[[Event], None] | None
) -> tuple[str, list[Event]]:
    client, base, events = uuid.uuid4().hex, f"http://127.0.0.1:{port}", []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{base}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        await socket.send_json(FEATURES)
        while (await socket.receive_json())["type"] != "feature_flags":
            pass
        body = {"prompt": prompt, "client_id": client, "extra_data": EXTRA}
        async with session.post(f"{base}/prompt", json=body) as answer:
            assert answer.status == 200, await answer.text()
            prompt_id = str((await answer.json())["prompt_id"])
        async for message in socket:
            for event in _read(message.data, prompt_id):
                events.append(event)
                if on_event is not None:
                    on_event(event)
                if event == Event("executing"):
                    return prompt_id, events
    raise AssertionError(f"the connection ended before the prompt did: {events[-5:]}")


def _read(data: str | bytes, prompt_id: str) -> Iterable[Event]:
    """The event in a message, if it is one about our prompt."""
    if isinstance(data, bytes):
        yield from _read_binary(data)
        return
    message = json.loads(data)
    kind, content = message["type"], message.get("data") or {}
    if content.get("prompt_id") != prompt_id:
        return
    if kind == "progress":
        yield Event(kind, content["node"], content["value"], content["max"])
    elif kind in NODE_EVENTS:
        yield Event(kind, content.get("node", content.get("node_id")))
    elif kind in PROMPT_EVENTS:
        yield Event(kind)
    elif kind == "execution_cached":
        yield from (Event(kind, node) for node in sorted(content["nodes"]))


def _read_binary(data: bytes) -> Iterable[Event]:
    kind, length = struct.unpack_from(">II", data)
    if kind == PREVIEW_WITH_METADATA:
        metadata = json.loads(data[8 : 8 + length])
        digest = hashlib.sha256(data[8 + length :]).hexdigest()
        yield Event("preview", metadata["node_id"], digest=digest)
    elif kind == PREVIEW:
        yield Event("preview", digest=hashlib.sha256(data[8:]).hexdigest())
    elif kind == TEXT:
        node, text = data[8 : 8 + length].decode(), data[8 + length :].decode()
        yield Event("text", node, text=text)
