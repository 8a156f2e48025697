"""Two clients at one queue, with all that they can do to it: the same as with one ComfyUI."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.test_queue import form
from tests.queue_bed.bed import PACK, Gates, Prompt, fault, queued, saved, share, unshare
from tests.support import Master

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with one worker: as many devices as one ComfyUI has."""
    base = tmp_path_factory.mktemp("clients")
    running = Master(comfyui, base, workers="cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


@dataclass
class Play:
    """Prompts by the names that they have here, and what each client was told of them."""

    server: Master
    ids: dict[str, str] = field(default_factory=dict)
    told: dict[str, list[tuple[str, str, Any]]] = field(default_factory=dict)

    async def queue(self, client: str, name: str, prompt: Prompt, **more: Any) -> None:
        body = {"prompt": prompt, "client_id": client, **more}
        answer = await asyncio.to_thread(self.server.post, "/prompt", body)
        assert not answer["node_errors"]
        self.ids[name] = str(answer["prompt_id"])

    async def post(self, path: str, body: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self.server.post, path, body)

    def names(self, prompt_ids: list[str]) -> list[str]:
        known = {prompt_id: name for name, prompt_id in self.ids.items()}
        return [known[prompt_id] for prompt_id in prompt_ids if prompt_id in known]

    @property
    def line(self) -> tuple[list[str], list[str]]:
        running, waiting = queued(self.server)
        return self.names(running), self.names(waiting)

    async def ends(self, *names: str) -> None:
        """Wait until these are in the history, and their clients know it."""
        for name in names:
            await asyncio.to_thread(self.server.finish, self.ids[name], 60)
        for name in names:
            await self._is_told(name, None)

    async def stands_at_gate(self, name: str) -> None:
        """Wait until its client knows it: a word on its way is lost if it is stopped."""
        await self._is_told(name, "2")

    async def _is_told(self, name: str, node: str | None) -> None:
        """Wait until somebody is told that this node of the prompt runs; None: that it ended."""
        while not any(
            kind == "executing" and about == self.ids[name] and data["node"] == node
            for events in self.told.values()
            for kind, about, data in events
        ):
            await asyncio.sleep(0.02)

    def endings(self) -> dict[str, Any]:
        """The histories, in their order."""
        history = self.server.get("/history")
        return {name: form(history[self.ids[name]]) for name in self.names(list(history))}


#: Told as often as there is time for it, or of the queue and not of a prompt.
_LEFT_OUT = ("progress", "progress_state", "status", "feature_flags")


@asynccontextmanager
async def connected(play: Play, client: str) -> AsyncIterator[None]:
    """A browser's connection; all that comes is kept."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{play.server.url}/ws?clientId={client}") as socket,
    ):
        heard = asyncio.ensure_future(_listen(play, client, socket))
        yield
        heard.cancel()


async def _listen(play: Play, client: str, socket: aiohttp.ClientWebSocketResponse) -> None:
    kept = play.told.setdefault(client, [])
    async for message in socket:
        if isinstance(message.data, str):
            told = json.loads(message.data)
            if told["type"] not in _LEFT_OUT:
                kept.append((told["type"], told["data"].get("prompt_id"), told["data"]))


def what_happens(server: Master, gates: Gates, mark: int) -> dict[str, Any]:
    """All that two clients do, and see. ``mark``: so that nothing comes from a cache."""
    play = Play(server)

    def held(name: str) -> Prompt:
        return gates.prompt(f"{name}{mark}", 1000 * mark + ord(name))

    async def run() -> list[Any]:
        lines = []
        one, two = (uuid.uuid4().hex for _ in range(2))
        async with connected(play, one), connected(play, two):
            await play.queue(one, "a", held("a"))
            await play.stands_at_gate("a")
            await play.queue(two, "b", held("b"))
            await play.queue(one, "bad", fault("all", color=1000 * mark))
            await play.queue(two, "gone", saved(1))
            await play.queue(one, "last", saved(1000 * mark + 1, "last"))
            await play.queue(two, "first", held("f"), front=True)
            lines.append(play.line)
            await play.post("/queue", {"delete": [play.ids["gone"]]})
            lines.append(play.line)
            await play.post("/interrupt", {"prompt_id": play.ids["a"]})
            await play.stands_at_gate("first")
            lines.append(play.line)
            gates.open(f"f{mark}")
            await play.stands_at_gate("b")
            lines.append(play.line)
            await play.post("/interrupt", {})
            await play.ends("a", "first", "b", "bad", "last")
        return [lines, {"one": play.told[one], "two": play.told[two]}]

    lines, told = asyncio.run(asyncio.wait_for(run(), 120))
    return {"lines": lines, "told": _by_prompt(play, told), "endings": play.endings()}


def _by_prompt(play: Play, told: Mapping[str, list[tuple[str, str, Any]]]) -> dict[str, Any]:
    """Of each client and each prompt the events in their order, without what differs by run."""
    names = {prompt_id: name for name, prompt_id in play.ids.items()}
    found: dict[str, list[Any]] = {}
    for client, events in told.items():
        for kind, prompt_id, data in events:
            about = names.get(prompt_id, "other")
            found.setdefault(f"{client}: {about}", []).append((kind, form(_shown(data))))
    return found


#: Sets that come in any order, and paths of this machine.
_VARYING = ("executed", "nodes", "traceback", "current_inputs", "current_outputs")


def test_what_two_clients_do_and_see_is_as_with_one_comfyui(server: Master, gates: Gates) -> None:
    unshare(server)
    alone = what_happens(server, gates, 1)
    share(server)
    elsewhere = what_happens(server, gates, 2)
    assert alone["lines"] == elsewhere["lines"]
    assert alone["told"] == elsewhere["told"]
    assert list(alone["endings"]) == list(elsewhere["endings"])
    for name, ending in alone["endings"].items():
        assert _without_varying(ending) == _without_varying(elsewhere["endings"][name]), name
    # And the test tests something.
    assert elsewhere["lines"][0] == (["a"], ["first", "b", "bad", "gone", "last"])
    assert list(elsewhere["endings"]) == ["a", "first", "b", "bad", "last"]
    ends = {
        name: ending["status"]["messages"][-1][0] for name, ending in elsewhere["endings"].items()
    }
    assert Counter(ends.values()) == {
        "execution_interrupted": 2, "execution_error": 1, "execution_success": 2,
    }  # fmt: skip


def _without_varying(ending: dict[str, Any]) -> Any:
    messages = [[kind, *map(_shown, data)] for kind, *data in ending["status"]["messages"]]
    return {**ending, "status": {**ending["status"], "messages": messages}}


def _shown(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry for key, entry in data.items() if key not in _VARYING}
