"""Copies of models to a worker that takes them, holds them up, refuses them, or lies."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from comfyfleet.api import BASE
from comfyfleet.api.guest import PIECE_BYTES, PROTOCOL
from comfyfleet.client.digests import Digests
from comfyfleet.client.models import ModelFile, Site, find_elsewhere
from comfyfleet.comfy.intake import Incoming, Intake
from comfyfleet.config import Remote
from comfyfleet.errors import InputError
from comfyfleet.fleet.copies import ENDED, Copies, Copy
from comfyfleet.fleet.remote import site_of
from tests.support import wait_until

DATA = hashlib.shake_128(b"weights").digest(1000) * (PIECE_BYTES // 1000 + 500)


class Worker:
    """As much of a worker as copies meet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.intake = Intake(Digests(folder / "there.json"), lambda: None)
        self.has_extension, self.answer = True, {}
        #: Bytes that came; while ``held``, the next ones are kept waiting.
        self.came = 0
        self.held = False
        self.url = ""
        #: What it has itself, how it tells of it, and what it knows of its digest.
        self.has, self.known = DATA, ""
        self.listed: list[Any] = [{"folder": "unet_gguf", "file": "a.gguf", "size": len(DATA)}]

    async def run(self, is_open: threading.Event, ended: asyncio.Event) -> None:
        app = web.Application(client_max_size=2 * PIECE_BYTES)
        app.router.add_get(f"{BASE}/guest/hello", self.hello)
        app.router.add_get(f"{BASE}/guest/models/part", self.part)
        app.router.add_put(f"{BASE}/guest/models/part", self.part)
        app.router.add_get(f"{BASE}/guest/models", self.models)
        app.router.add_get(f"{BASE}/guest/models/source", self.source)
        app.router.add_get(f"{BASE}/guest/models/bytes", self.bytes)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        is_open.set()
        await ended.wait()
        await runner.cleanup()

    async def hello(self, _request: web.Request) -> web.Response:
        if not self.has_extension:
            raise web.HTTPNotFound
        return web.json_response({"comfyfleet": "0.1.0", "protocol": PROTOCOL})

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"accepts": True, "models": self.listed})

    async def source(self, _request: web.Request) -> web.Response:
        """It reads the model when it is asked first."""
        known, self.known = self.known, hashlib.sha256(DATA).hexdigest()
        return web.json_response({"size": len(DATA), "sha256": known})

    async def bytes(self, request: web.Request) -> web.Response:
        start = int(request.query["start"])
        return web.Response(body=self.has[start : start + PIECE_BYTES])

    async def part(self, request: web.Request) -> web.Response:
        data = await request.read()
        self.came += len(data)
        while self.held and self.came > PIECE_BYTES:
            await asyncio.sleep(0.01)
        if self.answer:
            return web.json_response(self.answer, status=403 if "error" in self.answer else 200)
        given = request.query
        wanted = Incoming(
            path=self.folder / "there" / given["file"],
            size=int(given["size"]),
            sha256=given["sha256"],
        )
        try:
            return web.json_response(await self._take(wanted, request, data))
        except InputError as error:
            return web.json_response({"error": str(error)}, status=400)

    async def _take(self, wanted: Incoming, request: web.Request, data: bytes) -> dict[str, Any]:
        if request.method == "GET":
            return await self.intake.state(wanted)
        return await self.intake.add(wanted, int(request.query["start"]), data)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    found, is_open = Worker(tmp_path), threading.Event()
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(found.run(is_open, ended),))
    thread.start()
    assert is_open.wait(60)
    yield found
    found.held = False
    loop.call_soon_threadsafe(ended.set)
    thread.join(60)
    loop.close()


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Copies]:
    found = Copies(Digests(tmp_path / "here.json"))
    yield found
    found.close()


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    path = tmp_path / "here" / "a model.gguf"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return ModelFile(folder="unet_gguf", name="sub/a model.gguf", path=path)


def box(worker: Worker) -> Site:
    return site_of(Remote(name="box", url=worker.url))


def begin(copies: Copies, model: ModelFile, worker: Worker) -> Copy:
    return copies.begin(model, box(worker))


def ended(copies: Copies, copy: Copy) -> Copy:
    def look() -> Copy | None:
        now = next(each for each in copies.shown() if each.id == copy.id)
        return now if now.state in ENDED else None

    found: Copy = wait_until(look, "the copy")
    return found


def test_a_copy_arrives_and_is_not_sent_again(
    copies: Copies, model: ModelFile, worker: Worker
) -> None:
    for _ in range(2):
        found = ended(copies, begin(copies, model, worker))
        assert (found.state, found.bytes, found.error) == ("done", len(DATA), "")
    assert worker.came == len(DATA)
    assert (worker.folder / "there" / model.name).read_bytes() == DATA


def test_what_is_stopped_goes_on_from_there(
    copies: Copies, model: ModelFile, worker: Worker
) -> None:
    worker.held = True
    first = begin(copies, model, worker)
    wait_until(lambda: worker.came > PIECE_BYTES, "the second piece")
    assert begin(copies, model, worker).id == first.id, "it joins the first"
    stopped = copies.cancel(first.id)
    assert stopped is not None and stopped.state == "cancelled"
    assert stopped.bytes == PIECE_BYTES
    (part,) = (worker.folder / "there").rglob("*.part")
    assert part.stat().st_size == PIECE_BYTES
    worker.held = False
    again = begin(copies, model, worker)
    assert again.id != first.id
    assert ended(copies, again).state == "done"
    assert worker.came <= len(DATA) + PIECE_BYTES
    assert (worker.folder / "there" / model.name).read_bytes() == DATA
    after = copies.cancel(again.id)
    assert after is not None and after.state == "done", "what has ended stays as it is"
    assert copies.cancel("none") is None


def test_without_the_extension_it_says_what_to_do(
    copies: Copies, model: ModelFile, worker: Worker
) -> None:
    worker.has_extension = False
    found = ended(copies, begin(copies, model, worker))
    assert found.state == "failed"
    assert "put sub/a model.gguf into its folder unet_gguf by hand" in found.error


LIES = {
    "refused": ({"error": "set accept_models"}, "set accept_models"),
    "no number": ({"start": None, "state": "open"}, "it says that it has None of"),
    "too much": ({"start": 1 << 50, "state": "open"}, "it says that it has 1125899906842624 of"),
    "never more": ({"start": 0, "state": "open"}, "has lost parts of sub/a model.gguf 9 times"),
}


@pytest.mark.parametrize("case", LIES)
def test_one_that_refuses_or_lies(
    copies: Copies, model: ModelFile, worker: Worker, case: str
) -> None:
    worker.answer, said = LIES[case]
    found = ended(copies, begin(copies, model, worker))
    assert (found.state, said in found.error) == ("failed", True), found.error
    assert worker.came < 10 * PIECE_BYTES


def test_a_file_that_goes_away(copies: Copies, model: ModelFile, worker: Worker) -> None:
    worker.held = True
    copy = begin(copies, model, worker)
    wait_until(lambda: worker.came > PIECE_BYTES, "the second piece")
    model.path.write_bytes(b"")
    worker.answer, worker.held = {"start": 1, "state": "open"}, False
    assert "became shorter while it was copied" in ended(copies, copy).error


def from_worker(copies: Copies, worker: Worker) -> Copy:
    found = asyncio.run(find_elsewhere(box(worker), "a.gguf", None))
    return copies.begin(found, box(worker), "studio")


def test_a_model_of_another_worker_comes_piece_by_piece(copies: Copies, worker: Worker) -> None:
    done = ended(copies, from_worker(copies, worker))
    assert (done.state, done.source, done.error) == ("done", "studio", "")
    assert (worker.folder / "there" / "a.gguf").read_bytes() == DATA


@pytest.mark.parametrize("has", [DATA[:-1] + b"x", DATA[: PIECE_BYTES + 5]], ids=["other", "short"])
def test_a_worker_that_gives_another_model_spoils_nothing(
    copies: Copies, worker: Worker, has: bytes
) -> None:
    worker.has = has
    done = ended(copies, from_worker(copies, worker))
    assert done.state == "failed"
    assert "arrived damaged" in done.error or "became shorter" in done.error
    assert not (worker.folder / "there" / "a.gguf").exists()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([], "has no 'a.gguf'"),
        ([{"folder": 1, "file": "a.gguf", "size": 1}, 5, {"file": "a.gguf"}], "has no 'a.gguf'"),
        (
            [{"folder": each, "file": "a.gguf", "size": 1} for each in "xy"],
            r"folders there \(x, y\)",
        ),
    ],
)
def test_a_model_that_is_not_to_be_found_there(
    worker: Worker, listed: list[Any], said: str
) -> None:
    worker.listed = listed
    with pytest.raises(InputError, match=said):
        asyncio.run(find_elsewhere(box(worker), "a.gguf", None))
