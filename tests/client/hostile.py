"""A ComfyUI on the network that misbehaves, one thing at a time, and how it is met."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from email.utils import formatdate
from typing import Any, TypeVar

from aiohttp import web
from PIL import Image

from comfyfleet.client import link
from comfyfleet.client.link import Endpoint, Link, patiently
from comfyfleet.client.remote import RemoteRunner
from comfyfleet.work import Result

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GUEST = "/comfyfleet/v1/guest"
#: A unit that makes a picture and brings it home.
PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16}},
    "2": {"class_type": "FleetReturn", "inputs": {"images": ["1", 0]}},
}
#: One that saves a file.
SAVING = {"1": PROMPT["1"], "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}

STATS = {
    "system": {"comfyui_version": "0.3.75", "ram_total": 1 << 34, "argv": ["main.py"]},
    "devices": [{"name": "cpu", "type": "cpu", "vram_total": 5, "vram_free": 3}],
}
CLASSES = {
    "EmptyImage": {"input": {}, "output": ["IMAGE"], "output_is_list": [False]},
    "SaveImage": {"input": {}, "output": [], "output_node": True},
    "PreviewImage": {"input": {}, "output": [], "output_node": True},
    "FleetReturn": {"input": {}, "output": [], "output_node": True},
}


def answering(data: object, *, status: int = 200, **headers: str) -> Handler:
    """Always this JSON."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(data, status=status, headers=headers)

    return answer


def an_hour_ago() -> str:
    """What a clock says that is so late, as HTTP has it."""
    return formatdate(time.time() - 3600, usegmt=True)


def png(width: int = 16, height: int = 16) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(data, "PNG")
    return data.getvalue()


def saved(name: Any = "a_00001_.png", subfolder: Any = "", kind: Any = "output") -> dict[str, Any]:
    return {"filename": name, "subfolder": subfolder, "type": kind}


class Hostile:
    """Decent, but for what a test changes."""

    def __init__(self) -> None:
        #: Path, without its last part for /history/ID -> what answers in its place.
        self.instead: dict[str, Handler] = {}
        #: What each output node names.
        self.output: dict[str, Any] = {"images": [saved(kind="temp")]}
        #: JSON, text or bytes, sent before the end of a prompt.
        self.events: list[Any] = []
        self.picture = png()
        self.ends = True
        self.prompts: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.visits: list[str] = []
        self.sockets: list[web.WebSocketResponse] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.visits.append(f"{request.method} {request.path}")
        own = {
            "/system_stats": lambda r: self.json(STATS),
            "/object_info": lambda r: self.json(CLASSES),
            "/ws": self.socket,
            "/prompt": self.prompt,
            "/history": self.history,
            "/queue": lambda r: self.json({"queue_running": [], "queue_pending": []}),
            "/view": self.view,
            "/interrupt": lambda r: self.json({}),
            "/upload/image": lambda r: self.json({}),
        }
        for path, handler in {**own, **self.instead}.items():
            if request.path == path or request.path.startswith(f"{path}/"):
                answer: web.StreamResponse = await self.instead.get(path, handler)(request)
                return answer
        return web.Response(status=404)

    async def json(self, data: Any) -> web.Response:
        return web.json_response(data)

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for _ in socket:
            pass
        return socket

    async def prompt(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response({"exec_info": {"queue_remaining": 0}})
        body = await request.json()
        self.bodies.append(body)
        prompt_id = body["prompt_id"]
        self.prompts[prompt_id] = body["prompt"]
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, self.tell(prompt_id))
        return web.json_response({"prompt_id": prompt_id, "number": 1, "node_errors": {}})

    async def tell(self, prompt_id: str) -> None:
        for node_id in self.outputs(prompt_id):
            data = {"node": node_id, "prompt_id": prompt_id, "output": self.output}
            await self.send({"type": "executed", "data": data})
        for event in self.events:
            await self.send(event)
        if self.ends:
            data = {"node": None, "prompt_id": prompt_id}
            await self.send({"type": "executing", "data": data})

    async def send(self, event: Any) -> None:
        if isinstance(event, bytes):
            await self.sockets[-1].send_bytes(event)
        else:
            text = event if isinstance(event, str) else json.dumps(event)
            await self.sockets[-1].send_str(text)

    def outputs(self, prompt_id: str) -> dict[str, Any]:
        nodes = self.prompts[prompt_id].items()
        return {
            node_id: self.output
            for node_id, node in nodes
            if node["class_type"] in ("PreviewImage", "SaveImage")
        }

    async def history(self, request: web.Request) -> web.Response:
        prompt_id = request.path.rpartition("/")[2]
        if prompt_id not in self.prompts:
            return web.json_response({})
        status = {"status_str": "success", "completed": True, "messages": []}
        entry = {"outputs": self.outputs(prompt_id), "status": status, "meta": {}}
        return web.json_response({prompt_id: entry})

    async def view(self, request: web.Request) -> web.Response:
        if request.query["type"] == "input":
            return web.Response(status=404)
        return web.Response(body=self.picture, content_type="image/png")


Work = Callable[[Hostile, RemoteRunner], Awaitable[Any]]
#: What a request on this machine may take at the worst, whatever else it does.
_ANSWER_S = 20.0
T = TypeVar("T")


class Brisk(Link):
    """Tries again for moments only and soon sees silence, but gives an answer its time."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        answer_s: float = _ANSWER_S,
        silence_s: float = _ANSWER_S,
        tries_s: float = 0.3,
    ) -> None:
        super().__init__(endpoint, patience_s=answer_s)
        self.patience_s = silence_s
        self.answer_s, self._tries_s = answer_s, tries_s

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(work, self._tries_s)

    def _limit_s(self, num_bytes: int) -> float:
        return self.answer_s + num_bytes / link._SLOWEST


def play(
    hostile: Hostile,
    work: Work,
    *,
    answer_s: float = _ANSWER_S,
    silence_s: float = _ANSWER_S,
    tries_s: float = 0.3,
    greet: bool = True,
    **options: Any,
) -> Any:
    """Do ``work`` with the runner of a worker that is ``hostile``; it must end soon."""

    async def inner() -> Any:
        server = web.AppRunner(hostile.app(), shutdown_timeout=0.1)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        brisk = Brisk(
            Endpoint(url=url, token="secret"),
            answer_s=_ANSWER_S if greet else answer_s,
            silence_s=silence_s,
            tries_s=tries_s,
        )
        try:
            runner = RemoteRunner(brisk, options.pop("folders", {}), **options)
            if greet:
                await runner.greet()
            brisk.answer_s = answer_s
            return await work(hostile, runner)
        finally:
            await brisk.close()
            await server.cleanup()

    return asyncio.run(asyncio.wait_for(inner(), 60))


async def run_unit(
    hostile: Hostile, runner: RemoteRunner, prompt: Mapping[str, Any] = PROMPT
) -> Result:
    return await runner.run(prompt, "mine", lambda share: None, {})


async def whole(hostile: Hostile, runner: RemoteRunner) -> Any:
    await runner.greet()
    return await run_unit(hostile, runner)


async def save_unit(hostile: Hostile, runner: RemoteRunner) -> Result:
    return await run_unit(hostile, runner, SAVING)


async def greet(hostile: Hostile, runner: RemoteRunner) -> Any:
    return await runner.greet()


def served(*hostile: Hostile) -> AbstractContextManager[list[str]]:
    """Their addresses, while they run in a thread of their own."""
    return running(*(each.app() for each in hostile))


@contextmanager
def running(*apps: web.Application) -> Iterator[list[str]]:
    """Their addresses, while they run in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    servers = [web.AppRunner(each, shutdown_timeout=0.1) for each in apps]

    async def start(server: web.AppRunner) -> str:
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{server.addresses[0][1]}"

    try:
        yield [wait_for(start(server)) for server in servers]
    finally:
        for server in servers:
            wait_for(server.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
