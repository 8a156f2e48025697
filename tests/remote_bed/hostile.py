"""Asking our routes in a real ComfyUI in ways that no library offers, and with anything at all."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import schemathesis
from aiohttp import web
from schemathesis.checks import negative_data_rejection
from schemathesis.specs.openapi import checks

from scripts.openapi import OPENAPI
from tests.client.hostile import running
from tests.support import Master

#: What holds of every answer, to whatever was asked.
AS_DESCRIBED = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
anything = hypothesis.settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


#: What a browser says, and ComfyUI hears from the proxy.
_KEPT = ("Sec-Fetch-Site", "Content-Type")


class Server(Master):
    """A ComfyUI that is asked in ways that no library offers."""

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        **headers: str,
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and JSON (or text) of the answer. ``token``: "" for none."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        token = self.token if token is None else token
        if token:
            given["Authorization"] = f"Bearer {token}"
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as link:
            link.request(method, path, body, given)
            answer = link.getresponse()
            kind = answer.headers.get_content_type()
            text = "" if kind == "text/event-stream" else answer.read().decode()
        return answer.status, answer.headers, json.loads(text) if kind.endswith("json") else text

    def send(self, raw: bytes) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        link.sendall(raw)
        return link

    def head(self, length: int, path: str) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Length: {length}\r\n\r\n"
        ).encode()


@contextmanager
def passing_on(port: int, *, forwarded: bool) -> Iterator[int]:
    """The port of a proxy to that one, which speaks HTTP/1.1 and gives ComfyUI its own Host.

    ``forwarded``: it says for whom it asks, and nothing else.
    """

    async def handle(request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in _KEPT if name in request.headers}
        headers |= {"X-Forwarded-For": str(request.remote)} if forwarded else {}
        target = f"http://127.0.0.1:{port}{request.path_qs}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, target, headers=headers) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read())

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    with running(app) as [url]:
        yield int(url.rpartition(":")[2])


def described() -> schemathesis.BaseSchema:
    """The description of our routes but for who may ask: the token comes along with every call."""
    found = json.loads(OPENAPI.read_text(encoding="utf-8"))
    for routes in found["paths"].values():
        for route in routes.values():
            del route["security"]
    return schemathesis.openapi.from_dict(found)


def answered_as_described(
    case: schemathesis.Case, server: Server, checked: Any = (*AS_DESCRIBED, negative_data_rejection)
) -> None:
    """Ask; the answer is one of the description, comes soon, and is no fault of the server's."""
    headers = {"Authorization": f"Bearer {server.token}"}
    begun = time.monotonic()
    answer = case.call(base_url=server.url, headers=headers, timeout=60)
    assert time.monotonic() - begun < 60
    case.validate_response(answer, checks=list(checked))
    assert answer.status_code < 500, answer.text


def files_of(server: Server) -> set[Path]:
    """Where something could have been written; nobody knows the names of sessions."""
    return {path for path in server.base.rglob("*") if "__pycache__" not in path.parts}
