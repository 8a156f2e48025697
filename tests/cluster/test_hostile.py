"""Our routes in a real ComfyUI, asked by those who may not, and in every wrong way.

It is started with the flag that opens ComfyUI itself to every page: what holds then is ours.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import schemathesis

from comfyfleet.api import BASE, ROUTES, Access, Route
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens
from tests.remote_bed.hostile import (
    Server,
    answered_as_described,
    anything,
    described,
    files_of,
    passing_on,
)
from tests.support import ROOT, marked_processes, run_command, wait_until

pytestmark = pytest.mark.cluster

PACK = ROOT / "tests" / "access_pack"
VALUES = {
    "worker": "cpu-0",
    "action": "free",
    "run": "none",
    "name": "nobody",
    "prompt": "none",
    "buffer": "0",
    "copy": "0",
    "key": "stagger",
}
SHARE = f"{BASE}/share"
SAME = {"Sec-Fetch-Site": "same-origin"}
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


@pytest.fixture(scope="module")
def server(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("hostile")
    flags = ["--enable-cors-header"]
    named = {"COMFYFLEET_HOSTS": "studio.example, attic.example"}
    packs = {"access_pack": PACK}
    running = Server(comfyui, base, workers="cpu", packs=packs, flags=flags, settings=named)
    yield running
    running.close()


def path_of(route: Route, **values: str) -> str:
    given = {**VALUES, **values}
    return re.sub(r"{(\w+)}", lambda found: quote(given[found[1]], safe=""), route.address)


def body_for(route: Route) -> bytes | None:
    return None if route.body is None else b'{"on": true, "code": "AAAAAAAA", "name": "me"}'


guarded = pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.access is not Access.CODE],
    ids=lambda route: f"{route.method} {route.path}",
)
every = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")


# Pairing. First, as those who try wrong tokens are told to wait with codes too.


def test_pairing_from_the_code_to_its_end(server: Server, tmp_path: Path) -> None:
    file, said = tmp_path / "theirs.token", run_command("pair", "--url", server.url)
    code = re.search(r"[A-Z2-9]{4}-[A-Z2-9]{4}", said.stdout)
    assert code, said.stderr
    wrong = run_command("pair", server.url, "AAAA-AAAA", "--name", "studio", "--out", str(file))
    assert (wrong.returncode, file.exists()) == (2, False)
    assert "this code is not valid, or no longer" in " ".join(wrong.stderr.split())
    got = run_command("pair", server.url, code[0], "--name", "studio", "--out", str(file))
    assert got.returncode == 0, got.stderr
    theirs = ("--url", server.url, "--token-file", str(file))
    assert run_command("top", "--once", *theirs).returncode == 0
    assert "only the owner" in run_command("tokens", "list", *theirs).stderr
    again = run_command("pair", server.url, code[0], "--name", "two", "--out", str(file))
    assert again.returncode == 2, "once"
    listed = run_command("tokens", "list", "--url", server.url).stdout
    assert "studio" in listed and not SECRET.search(listed)

    token = file.read_text().strip()
    stream = server.send(stream_of(server, token))
    with stream, stream.makefile("rb") as lines:
        assert b"200" in lines.readline()
        assert run_command("tokens", "revoke", "studio", "--url", server.url).returncode == 0
        assert server.ask("GET", f"{BASE}/status", token=token)[0] == 401
        assert lines.read(), "it ends"
    unknown = run_command("tokens", "revoke", "studio", "--url", server.url)
    assert (unknown.returncode, "nobody called 'studio'" in unknown.stderr) == (2, True)
    log = server.log.read_text()
    assert "studio holds a token" in log and "the token of studio is revoked" in log
    assert token not in log and server.token not in log and code[0].replace("-", "") not in log


def stream_of(server: Server, token: str) -> bytes:
    head = f"GET {BASE}/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    return f"{head}Authorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode()


def test_pages_in_a_body(server: Server) -> None:
    body = json.dumps({"code": "AAAAAAAA", "name": "<script>alert(1)</script>"})
    status, headers, said = server.ask("POST", f"{BASE}/pair", body, token="")
    assert (status, headers.get_content_type()) == (400, "application/json")
    assert "letters, digits, dots" in said["error"]


# Who may not.


def test_every_route_of_ours_is_one_of_the_table(server: Server) -> None:
    found = [each for each in server.get("/test/routes") if "comfyfleet/v1" in each["path"]]
    wanted = {(r.method, place + r.address) for r in ROUTES for place in ("", "/api")}
    heads = {("HEAD", path) for method, path in wanted if method == "GET"}
    assert {(each["method"], each["path"]) for each in found} == wanted | heads
    assert {each["by"] for each in found} == {
        "comfyfleet.extension.routes.access.serve.<locals>.handle"
    }


@guarded
@pytest.mark.parametrize("kind", ["missing", "wrong", "revoked"])
def test_without_a_valid_token(server: Server, route: Route, kind: str) -> None:
    tokens = Tokens(server.folder / TOKENS_FILE)
    token = {"missing": "", "wrong": "x" * 43, "revoked": ""}[kind]
    if kind == "revoked":
        token = tokens.issue("gone")
        allowed = route.access is not Access.OWNER and not route.path.endswith("events")
        if allowed and route.method == "GET":
            assert server.ask("GET", path_of(route), token=token)[0] in (200, 400, 404)
        tokens.revoke("gone")
    for place in ("", "/api"):
        found = server.ask(route.method, place + path_of(route), body_for(route), token=token)
        status, headers, said = found
        # All of these come from one address, so some are told to wait.
        assert status in (401, 429) if token else status == 401
        assert "comfyfleet pair" in said["error"] or status == 429
        assert (headers["WWW-Authenticate"] == "Bearer") == (status == 401)


@every
@pytest.mark.parametrize("page", ["foreign", "rebound"])
def test_from_a_page_that_is_not_ours(server: Server, route: Route, page: str) -> None:
    headers = FOREIGN if page == "foreign" else {"Host": "evil.example", **SAME}
    if page == "rebound" and route.access is Access.CODE:
        headers = {**headers, "Origin": f"http://127.0.0.1:{server.port}"}
    path, body = path_of(route), body_for(route)
    status, answered, said = server.ask(route.method, path, body, token="", **dashed(headers))
    assert status == 403, said
    assert [name for name in answered if name.startswith("Access-Control")] == []
    asked = {"Access-Control-Request-Method": route.method, **headers}
    _, answered, _ = server.ask("OPTIONS", path, token="", **dashed(asked))
    assert [name for name in answered if name.startswith("Access-Control")] == []


def dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in headers.items()}


def test_its_own_page_may_and_says_nothing_to_others(server: Server) -> None:
    status, headers, found = server.ask("GET", f"/api{BASE}/status", token="", **dashed(SAME))
    assert (status, found["fleet"]) == (200, "none")
    ours = {"Host": "attic.example", **SAME}
    assert server.ask("GET", f"{BASE}/status", token="", **dashed(ours))[0] == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert server.ask("HEAD", f"{BASE}/events")[0] == 405, "no stream without a reader"


def test_what_nginx_passes_on_is_not_the_owner(server: Server) -> None:
    """Unless it is told otherwise: from loopback, with the very Host that it has as target."""
    head = (
        f"POST {BASE}/pairing HTTP/1.%s\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
    )
    for version, status in (("0", b" 403 "), ("1", b" 200 ")):
        said = f"{head % version}Sec-Fetch-Site: same-origin\r\n\r\n".encode()
        with server.send(said) as link:
            assert status in link.recv(65536).partition(b"\r\n")[0]


@pytest.mark.parametrize(("forwarded", "status"), [(True, 403), (False, 200)])
def test_a_proxy_that_says_for_whom_it_asks_is_not_the_owner(
    server: Server, forwarded: bool, status: int
) -> None:
    """By one header; without it nobody can tell what comes by it from a program of this machine."""
    with passing_on(server.port, forwarded=forwarded) as port:
        head = f"POST {BASE}/pairing HTTP/1.1\r\nHost: studio.example\r\nConnection: close\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
            link.sendall(f"{head}Sec-Fetch-Site: same-origin\r\n\r\n".encode())
            assert f" {status} ".encode() in link.recv(65536).partition(b"\r\n")[0]


def test_a_file_that_others_can_read_closes_the_routes(server: Server) -> None:
    file, token = server.folder / TOKENS_FILE, server.token
    file.chmod(0o644)
    try:
        status, _, said = server.ask("GET", f"{BASE}/status", token=token)
        assert (status, "chmod 600" in said["error"]) == (503, True)
        answer = run_command("top", "--once", "--url", server.url)
        assert (answer.returncode, "chmod 600" in answer.stderr) == (3, True)
    finally:
        file.chmod(0o600)
    assert server.ask("GET", f"{BASE}/status", token=token)[0] == 200


# What is asked.

NAMES = [
    "..", "../../etc/passwd", "..\\..\\x", "/etc/passwd", "cpu-0/../../x", "cpu-0\x00", "%2e%2e",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "a" * 4000, "\u202e",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_are_paths_or_pages(server: Server, name: str) -> None:
    for route in (each for each in ROUTES if each.path_fields):
        field = route.path_fields[0].name
        status, headers, said = server.ask(route.method, path_of(route, **{field: name}))
        if isinstance(said, str):  # ComfyUI's router took it for another address
            assert status in (404, 405) and "<script" not in said
            continue
        assert (status, headers.get_content_type()) == (400, "application/json")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert len(said["error"]) < 300


ON = b'{"on": true}'
BODIES = {
    "nothing": (b"", {}, 400),
    "no JSON": (b"{on: true}", {}, 400),
    "no object": (b"[]", {}, 400),
    "no UTF-8": (b'{"on": "\xff"}', {}, 400),
    "another charset": (ON.decode().encode("utf-16"), {}, 400),
    "no charset": (b"[]", {"Content_Type": "application/json; charset=nonsense"}, 400),
    "NaN": (b'{"on": true, "stagger_s": NaN}', {}, 400),
    "a number without end": (b'{"on": true, "stagger_s": ' + b"9" * 100_000 + b"}", {}, 400),
    "depth": (b"[" * 500_000, {}, 400),
    "an unknown field": (b'{"on": true, "extra_args": "--base-directory"}', {}, 400),
    "too large": (b'{"on": true}' + b" " * 1024 * 1024, {}, 413),
    "a bomb": (gzip.compress(b" " * 10_000_000), {"Content_Encoding": "gzip"}, 413),
    "no gzip": (b"hello", {"Content_Encoding": "gzip"}, 400),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies(server: Server, case: str) -> None:
    body, headers, expected = BODIES[case]
    status, _, said = server.ask("POST", SHARE, body, **headers)
    assert status == expected, said
    assert not server.get(SHARE)["on"]


def test_a_large_body_that_does_not_say_so(server: Server) -> None:
    chunks = iter([b" " * 65536] * 20)
    assert server.ask("POST", SHARE, chunks)[0] == 413


def test_a_slow_body_is_not_waited_for(server: Server) -> None:
    server.ask("POST", "/test/patience", "0.2", token="")
    try:
        with server.send(server.head(12, SHARE) + b'{"on"') as link:
            assert b" 408 " in link.recv(65536).partition(b"\r\n")[0]
    finally:
        server.ask("POST", "/test/patience", "30", token="")


def test_a_truncated_body_changes_nothing(server: Server) -> None:
    with server.send(server.head(12, SHARE) + b'{"on": true') as link:
        link.shutdown(socket.SHUT_WR)
        assert b" 200 " not in link.recv(65536).partition(b"\r\n")[0]
    assert not server.get(SHARE)["on"]


def test_only_so_many_read_the_stream(server: Server) -> None:
    with ExitStack() as readers:
        for _ in range(32):
            link = readers.enter_context(server.send(stream_of(server, server.token)))
            assert b" 200 " in link.recv(64)
        status, _, _ = server.ask("GET", f"{BASE}/events")
        assert status == 503
    wait_until(lambda: _reads(server), "the readers to be gone")


def _reads(server: Server) -> bool:
    with server.send(stream_of(server, server.token)) as link:
        return b" 200 " in link.recv(64)


# Anything at all, with the description in hand.

#: One never ends; the others write the owner's settings, see test_hostile_settings.
_APART = [f"{BASE}{path}" for path in ("/events", "/config/workers", "/config/settings/{key}")]
schema = described().exclude(path=_APART)


@pytest.fixture(scope="module")
def files_before(server: Server) -> set[Path]:
    """With a fleet: what follows asks its workers too."""
    server.post(SHARE, {"on": True})
    return files_of(server)


@schema.parametrize()
@anything
def test_anything_is_answered_as_described(
    case: schemathesis.Case, server: Server, files_before: set[Path]
) -> None:
    answered_as_described(case, server)


def test_afterwards_all_is_as_it_was(server: Server, files_before: set[Path]) -> None:
    assert server.process.poll() is None
    new = files_of(server) - files_before
    guests = server.base / "temp" / "comfyfleet-guests"
    sent = server.base / "input" / "comfyfleet"
    ours = {server.folder, server.folder / "logs", guests, guests.parent, sent, sent.parent}
    assert {path.parent for path in new} <= ours
    assert all(re.fullmatch(r"[0-9a-f]{64}\.(part|blob)", each.name) for each in guests.glob("*"))
    parts = re.compile(r"[0-9a-f]{40}(\.[a-z0-9_-]+)?\.guest-[^/]+\.part")
    assert all(parts.fullmatch(each.name) for each in sent.glob("*"))
    assert "Error handling request" not in server.log.read_text()
    assert server.get(f"{BASE}/status")["fleet"] == "running"
    assert marked_processes()
