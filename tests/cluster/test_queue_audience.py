"""What clients are told, and what the history says, of prompts elsewhere: as by one ComfyUI."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import prompts
from tests.cluster.test_queue import form
from tests.queue_bed.bed import (
    PACK,
    Gates,
    Prompt,
    picture,
    save,
    share,
    unshare,
    wait_to_run,
)
from tests.support import Master

pytestmark = pytest.mark.cluster

#: Told as often as there is time for it.
OFTEN = ("progress", "progress_state", "preview")


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A master with one worker, which runs all that is shared."""
    base = tmp_path_factory.mktemp("audience")
    running = Master(comfyui, base, workers="cpu", packs={"queue_bed": PACK})
    yield running
    running.close()


@pytest.fixture
def both(server: Master) -> Iterator[Callable[[Callable[[int], Any]], tuple[Any, Any]]]:
    """Does something with one ComfyUI, and then with prompts that run on the worker."""

    def do(what: Callable[[int], Any]) -> tuple[Any, Any]:
        unshare(server)
        alone = what(1)
        share(server)
        return alone, what(2)

    yield do
    unshare(server)


Both = Callable[[Callable[[int], Any]], tuple[Any, Any]]


@asynccontextmanager
async def _connected(server: Master, client: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}") as socket,
    ):
        yield socket


async def _kinds(socket: aiohttp.ClientWebSocketResponse, prompt_id: str) -> list[str]:
    """What kinds of messages come until the queue is empty again."""
    found: list[str] = []
    begun = False
    async for message in socket:
        if isinstance(message.data, bytes):
            found.append("preview" if struct.unpack_from(">I", message.data)[0] == 1 else "binary")
            continue
        told = json.loads(message.data)
        if told["type"] == "status":
            left = told["data"]["status"]["exec_info"]["queue_remaining"]
            if begun and not left:
                return found
            begun = begun or left > 0
        elif told["data"].get("prompt_id") in (None, prompt_id):
            found.append(told["type"])
    raise AssertionError(f"the connection ended: {found}")


def told(server: Master, prompt: Prompt, *, interrupt: Callable[[str], None] | None = None) -> Any:
    """What some client is told of a prompt that was queued without any."""

    async def listen() -> list[str]:
        async with _connected(server, uuid.uuid4().hex) as socket:
            prompt_id = await asyncio.to_thread(server.queue, prompt)
            listening = asyncio.ensure_future(_kinds(socket, prompt_id))
            if interrupt is not None:
                await asyncio.to_thread(interrupt, prompt_id)
            found = await asyncio.wait_for(listening, 60)
            await asyncio.to_thread(server.finish, prompt_id)
            return found

    kinds = asyncio.run(listen())
    return [kind for kind in kinds if kind not in OFTEN], set(kinds)


def test_of_a_prompt_without_a_client_all_see_the_progress(server: Master, both: Both) -> None:
    alone, elsewhere = both(lambda seed: told(server, prompts.demo(seed=40 + seed, steps=6)))
    assert alone == elsewhere
    assert {"progress", "progress_state"} <= alone[1]


def test_of_a_prompt_without_a_client_all_see_that_it_was_stopped(
    server: Master, both: Both, gates: Gates
) -> None:
    def stop(prompt_id: str, name: str) -> None:
        gates.wait(name)
        wait_to_run(server, prompt_id)
        server.post("/interrupt", {"prompt_id": prompt_id})

    alone, elsewhere = both(
        lambda i: told(server, gates.prompt(f"t{i}", i), interrupt=lambda at: stop(at, f"t{i}"))
    )
    # How much it was told of the steps before depends on how soon it was stopped.
    assert alone[0] == elsewhere[0] == ["execution_interrupted"]


def test_a_client_that_comes_back_is_told_what_runs(
    server: Master, both: Both, gates: Gates
) -> None:
    def come_back(i: int) -> list[Any]:
        return asyncio.run(asyncio.wait_for(_come_back(server, gates, f"back{i}"), 60))

    alone, elsewhere = both(come_back)
    assert alone == elsewhere == [["status", None], ["executing", {"node": "2"}]]


async def _come_back(server: Master, gates: Gates, name: str) -> list[Any]:
    """The first two messages to a client whose prompt stands at a gate; then it goes on."""
    client = uuid.uuid4().hex
    prompt_id = await _at_gate(server, gates.prompt(name, len(name)), client)
    async with _connected(server, client) as socket:
        messages = [await socket.receive_json() for _ in range(2)]
    gates.open(name)
    await asyncio.to_thread(server.finish, prompt_id)
    return [[each["type"], None if each["type"] == "status" else each["data"]] for each in messages]


async def _at_gate(server: Master, prompt: Prompt, client: str) -> str:
    """Queue a prompt and wait until its client is told that it stands at its gate; its id."""
    async with _connected(server, client) as socket:
        body = {"prompt": prompt, "client_id": client}
        queued = await asyncio.to_thread(server.post, "/prompt", body)
        async for message in socket:
            told = json.loads(message.data)
            if told["type"] == "executing" and told["data"]["node"] == "2":
                return str(queued["prompt_id"])
    raise AssertionError("the connection ended")


def test_the_history_of_a_stopped_prompt_has_what_was_done(
    server: Master, both: Both, gates: Gates
) -> None:
    def stop(i: int) -> Any:
        held = gates.prompt(f"held{i}", 7)
        held["1"] = picture(i)["1"]
        held["4"] = {"class_type": "TestSaver", "inputs": save(["1", 0], "before")["inputs"]}
        held["2"]["inputs"]["image"] = ["4", 0]
        prompt_id = asyncio.run(_at_gate(server, held, uuid.uuid4().hex))
        gates.wait(f"held{i}")
        server.post("/interrupt", {"prompt_id": prompt_id})
        entry = server.finish(prompt_id)
        assert all(path.is_file() for path in server.files(entry, "4"))
        entry["status"]["messages"][-1][1]["executed"].sort()
        return form(entry)

    alone, elsewhere = both(stop)
    assert alone == elsewhere
    assert elsewhere["status"]["messages"][-1][1]["executed"] == ["1", "4"]
    assert [each[0] for each in elsewhere["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_interrupted",
    ]
