"""A worker on the network that stalls, floods, or whose line breaks and heals, at each stage."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from comfyfleet.client.guest import Guest
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.remote import RemoteRunner
from comfyfleet.client.uploads import Uploads
from comfyfleet.errors import InputError, Unfit, Unreachable
from tests.client.hostile import (
    GUEST,
    PROMPT,
    Brisk,
    Handler,
    Hostile,
    greet,
    play,
    run_unit,
    save_unit,
    saved,
    whole,
)

#: Where a unit of a plain ComfyUI can be held up, and what is done then.
STAGES = ["/system_stats", f"{GUEST}/hello", "/object_info", "/ws", "/prompt", "/history", "/view"]


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("it has no end")


async def half(request: web.Request) -> web.StreamResponse:
    """Headers and the beginning of a body, and then nothing."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"{")
    return await never(request)


async def drops(request: web.Request) -> web.StreamResponse:
    """A byte now and then, so that it is never silent."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * (1 << 20))


@pytest.mark.parametrize("handler", [never, half, drops])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stall_ends_within_the_patience(stage: str, handler: Handler) -> None:
    hostile = Hostile()
    hostile.instead[stage] = handler
    with pytest.raises(Unreachable):
        play(hostile, whole, answer_s=0.3, silence_s=0.3, greet=False)


@pytest.mark.parametrize("stage", ["/system_stats", "/object_info"])
def test_a_body_without_end_is_refused(stage: str) -> None:
    hostile = Hostile()
    hostile.instead[stage] = endless
    with pytest.raises(Unreachable, match="it sends an answer of over"):
        play(hostile, greet, greet=False)


class SmallProxy:
    """Refuses bodies as soon as it has read how long they are, as proxies do."""

    def __init__(self, *, lingers: bool) -> None:
        self.lingers = lingers
        self.tasks: list[Any] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                refused = head.startswith((b"PUT", b"POST"))
                status = b"413 Content Too Large" if refused else b"200 OK"
                text = b"<html>too large</html>" if refused else b'{"start": 0}'
                text = b"" if head.startswith(b"HEAD") else text
                length = b"Content-Length: %d" % len(text)
                last = b"\r\nConnection: close" if refused else b""
                writer.write(b"HTTP/1.1 %s\r\n%s%s\r\n\r\n%s" % (status, length, last, text))
                await writer.drain()
                if refused:
                    break
            while self.lingers and await reader.read(1 << 16):
                pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("in_pieces", "said"),
    [(True, "something before it takes no request of this size"), (False, "or raise the limit")],
    ids=["extension", "plain"],
)
@pytest.mark.parametrize("lingers", [True, False])
def test_a_proxy_that_takes_no_large_body_is_named(
    tmp_path: Path, lingers: bool, in_pieces: bool, said: str
) -> None:
    """It says so before it has the body, and may close the connection then."""
    (tmp_path / "large.png").write_bytes(os.urandom(20_000_000))
    load = {"1": {"class_type": "LoadImage", "inputs": {"image": "large.png"}}}

    async def work() -> None:
        proxy = SmallProxy(lingers=lingers)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        link = Link(Endpoint(url=url_of(server)), patience_s=60)
        uploads = Uploads(link, Guest(link), {"input": tmp_path})
        with pytest.raises(Unfit, match=said):
            await uploads.send(load, in_pieces=in_pieces)
        await link.close()
        server.close()
        await asyncio.gather(*proxy.tasks)

    asyncio.run(asyncio.wait_for(work(), 120))


def url_of(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_nobody_takes_what_we_send(tmp_path: Path) -> None:
    """A body that is never read."""
    (tmp_path / "large.png").write_bytes(bytes(50_000_000))
    load = {"class_type": "EmptyImage", "inputs": {"image": "large.png"}}

    async def work(hostile: Hostile, runner: Any) -> None:
        hostile.instead["/upload/image"] = never

        async def fast(request: web.Request) -> web.StreamResponse:
            return web.Response()

        with pytest.raises(Unreachable, match="did not answer in time"):
            await run_unit(hostile, runner, PROMPT | {"4": load})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("comfyfleet.client.link._SLOWEST", 1 << 30)
        play(Hostile(), work, answer_s=0.3, folders={"input": tmp_path})


def test_silence_after_the_end_of_a_prompt_is_seen_through() -> None:
    """Whoever swallows events, as some proxies do: the history has all."""
    hostile = Hostile()
    hostile.ends = False
    assert play(hostile, run_unit, silence_s=0.3).values is not None


def test_a_prompt_that_runs_on_in_silence_is_waited_for() -> None:
    hostile = Hostile()
    hostile.ends = False
    looks = 0

    async def running(request: web.Request) -> web.Response:
        return web.json_response({"queue_running": [[0, "mine"], 3, "x"], "queue_pending": 4})

    async def history(request: web.Request) -> web.StreamResponse:
        nonlocal looks
        looks += 1
        return await hostile.history(request) if looks > 4 else web.json_response({})

    hostile.instead |= {"/queue": running, "/history": history}
    assert play(hostile, run_unit, silence_s=0.2).values is not None


def test_one_that_was_restarted_has_lost_the_prompt() -> None:
    hostile = Hostile()
    hostile.ends = False

    async def history(request: web.Request) -> web.Response:
        return web.json_response({})

    hostile.instead["/history"] = history
    with pytest.raises(Unreachable, match="it was restarted and has lost the prompt"):
        play(hostile, run_unit, silence_s=0.2)


def cutting(hostile: Hostile, own: Handler, times: int, *, late: bool) -> Handler:
    """Breaks the line so often: before anything was done, or when only the answer is missing."""
    left = times

    async def cut(request: web.Request) -> web.StreamResponse:
        nonlocal left
        left -= 1
        if left < 0:
            return await own(request)
        if late:
            await own(request)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return cut


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", ["/prompt", "/history", "/view", "/queue"])
def test_a_line_that_was_cut_and_healed(stage: str, late: bool) -> None:
    """The prompt runs once, and its result arrives."""
    hostile = Hostile()
    hostile.output = {"images": [saved()]}
    own: dict[str, Any] = {
        "/prompt": hostile.prompt,
        "/history": hostile.history,
        "/view": hostile.view,
        "/queue": lambda request: hostile.json({}),
    }
    hostile.instead[stage] = cutting(hostile, own[stage], 2, late=late)
    result = play(hostile, save_unit, tries_s=20)
    assert [file.name for file in result.files] == ["a_00001_.png"]
    assert len(hostile.bodies) == 1


def test_a_web_socket_that_was_cut_in_the_middle() -> None:
    hostile = Hostile()

    async def tell(prompt_id: str) -> None:
        await hostile.sockets[0].close()

    hostile.tell = tell  # type: ignore[method-assign]
    assert play(hostile, run_unit, tries_s=20).values is not None


# TLS.


@asynccontextmanager
async def secured(certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """The port of a decent ComfyUI with this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    server = web.AppRunner(Hostile().app(), shutdown_timeout=0.1)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield server.addresses[0][1]
    finally:
        await server.cleanup()


def met(certificate: trustme.LeafCert, ca: Path | None, scheme: str = "https") -> str:
    """The version of who is met at localhost."""

    async def inner() -> str:
        async with secured(certificate) as port:
            link = Brisk(Endpoint(url=f"{scheme}://localhost:{port}", ca=ca))
            try:
                return (await RemoteRunner(link, {}).greet()).version
            finally:
                await link.close()

    return asyncio.run(asyncio.wait_for(inner(), 120))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def test_a_certificate_of_an_authority_that_was_given(authority: Any, trusted: Path) -> None:
    assert met(authority.issue_cert("localhost"), trusted) == "0.3.75"


def test_a_certificate_that_nobody_knows(authority: Any) -> None:
    with pytest.raises(Unreachable, match=r"not trusted.*give its certificate as ca"):
        met(authority.issue_cert("localhost"), None)


def test_a_certificate_of_another_authority(trusted: Path) -> None:
    with pytest.raises(Unreachable, match="TLS certificate is not trusted"):
        met(trustme.CA().issue_cert("localhost"), trusted)


def test_a_certificate_for_another_name(authority: Any, trusted: Path) -> None:
    with pytest.raises(Unreachable, match=r"TLS certificate is not trusted.*[Hh]ostname mismatch"):
        met(authority.issue_cert("other.example"), trusted)


def test_a_certificate_that_has_expired(authority: Any, trusted: Path) -> None:
    now = datetime.now(timezone.utc)
    old = authority.issue_cert(
        "localhost", not_before=now - timedelta(days=9), not_after=now - timedelta(days=1)
    )
    with pytest.raises(Unreachable, match=r"TLS certificate is not trusted.*expired"):
        met(old, trusted)


def test_tls_and_none_are_not_mistaken(authority: Any, trusted: Path) -> None:
    with pytest.raises(Unreachable):
        met(authority.issue_cert("localhost"), trusted, scheme="http")

    async def plain() -> None:
        server = web.AppRunner(Hostile().app(), shutdown_timeout=0.1)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        link = Brisk(Endpoint(url=f"https://127.0.0.1:{server.addresses[0][1]}"))
        try:
            with pytest.raises(Unreachable, match=r"no TLS .*address with http://"):
                await RemoteRunner(link, {}).greet()
        finally:
            await link.close()
            await server.cleanup()

    asyncio.run(asyncio.wait_for(plain(), 120))


def test_a_ca_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")

    async def make() -> None:
        Link(Endpoint(url="https://x", ca=tmp_path / "ca.pem"))

    with pytest.raises(InputError, match=r"cannot be read as certificates.*give a PEM file"):
        asyncio.run(make())
