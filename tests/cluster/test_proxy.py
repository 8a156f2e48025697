"""The door with a token before a ComfyUI: nobody without one, and everything with one."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from comfyfleet.client.link import Endpoint, Link
from comfyfleet.config import Remote
from comfyfleet.errors import Unreachable
from comfyfleet.fleet import Fleet, Host
from comfyfleet.fleet.proxy import Listening, Proxy
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens
from tests.queue_bed.bed import PACK, picture, save, saved
from tests.remote_bed.bed import begin, results, returning
from tests.support import COMFYFLEET, Master, free_port, run_command, wait_until

pytestmark = pytest.mark.cluster

OWN = "a-token-of-the-owner's-making-0123456789"


@pytest.fixture(scope="module")
def studio(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    folder = tmp_path_factory.mktemp("studio")
    running = Master(comfyui, folder, workers="0", packs={"queue_bed": PACK})
    yield running
    running.close()


@contextmanager
def served(studio: Master, log: Path, *options: str) -> Iterator[str]:
    """The address of ``comfyfleet serve``."""
    command = [str(COMFYFLEET), "serve", "--port", "0", "--url", studio.url, *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    pattern = re.compile(r"(https?://[\d.]+:\d+) asks for a token")
    try:
        yield wait_until(lambda: pattern.search(log.read_text()), f"the door: {log}")[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def door(studio: Master, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(studio, tmp_path_factory.mktemp("door") / "log") as address:
        yield address


def ask(
    address: str, path: str, token: str = "", *, method: str = "GET", body: Any = None
) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_without_a_token_no_route_answers(door: str, studio: Master) -> None:
    """All that ComfyUI serves to a browser, and what it does not know."""
    nodes = "/object_info /extensions /embeddings /models /system_stats /prompt /queue /history"
    pages = "/ /api/object_info /view?filename=x.png /userdata?dir=. /settings /ws /features"
    ours = "/comfyfleet/v1/status /comfyfleet/v1/metrics /comfyfleet/v1/tokens /no/such/route"
    for path in f"{nodes} {pages} {ours}".split():
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert ask(door, path, method=method, body={})[0] == 401, (method, path)
    assert ask(door, "/prompt", method="HEAD")[0] == 401
    assert ask(door, "/prompt", "wrong")[0] == 401
    assert ask(studio.url, "/queue")[0] == 200


def test_with_a_token_everything_is_as_there(door: str, studio: Master) -> None:
    for path in ("/object_info", "/", "/queue", "/comfyfleet/v1/status"):
        assert ask(door, path, studio.token)[0] == 200, path
    assert ask(door, "/no/such/route", studio.token)[0] == 404
    assert ask(door, "/prompt", studio.token, method="POST", body={"prompt": {}})[0] == 400


def test_what_is_encoded_in_a_path_stays_encoded(door: str, studio: Master) -> None:
    """ComfyUI has files whose names are one part of the path, slashes and all."""
    name = "/userdata/workflows%2Fa%20b.json"
    assert ask(door, name, studio.token, method="POST", body={"nodes": []})[0] == 200
    assert ask(door, name, studio.token) == (200, b'{"nodes": []}')


def test_a_prompt_with_its_events_and_its_picture(door: str, studio: Master) -> None:
    async def follow() -> tuple[list[str], bytes]:
        headers = {"Authorization": f"Bearer {studio.token}"}
        async with aiohttp.ClientSession(door, headers=headers) as session:
            async with session.ws_connect("/ws?clientId=abc") as events:
                body = {"prompt": saved(7, "door"), "client_id": "abc"}
                async with session.post("/prompt", json=body) as answer:
                    prompt_id = (await answer.json())["prompt_id"]
                kinds, ended = [], False
                while not ended:  # by the event that comes after its history is written
                    message = await events.receive(timeout=60)
                    if message.type is aiohttp.WSMsgType.TEXT:
                        event = message.json()
                        kinds.append(event["type"])
                        ended = event["type"] == "executing" and event["data"]["node"] is None
            async with session.get(f"/history/{prompt_id}") as answer:
                entry = (await answer.json())[prompt_id]
            image = entry["outputs"]["3"]["images"][0]
            async with session.get("/view", params=image) as answer:
                return kinds, await answer.read()

    kinds, data = asyncio.run(follow())
    assert {"status", "execution_start", "executed", "execution_success"} <= set(kinds)
    assert data.startswith(b"\x89PNG")


def test_a_large_upload_arrives_whole(door: str, studio: Master, tmp_path: Path) -> None:
    file = tmp_path / "noise.bmp"
    Image.effect_noise((2000, 2000), 80).convert("RGB").save(file)

    async def upload() -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {studio.token}"}
        async with aiohttp.ClientSession(door, headers=headers) as session:
            form = aiohttp.FormData()
            form.add_field("image", file.open("rb"), filename="noise.bmp")
            async with session.post("/upload/image", data=form) as answer:
                return dict(await answer.json())

    name = asyncio.run(upload())["name"]
    assert (studio.base / "input" / name).read_bytes() == file.read_bytes()
    assert ask(door, f"/view?filename={name}&type=input", studio.token)[1] == file.read_bytes()


def test_a_worker_by_url_works_through_it(door: str, studio: Master, comfyui: Path) -> None:
    """With typed values, and the files of a whole prompt."""
    host = Host(comfyui=comfyui, cwd=Path.cwd())
    through = Remote(name="through", url=door, token=studio.token)
    with Fleet([], host, remotes=[through]) as fleet:
        typed = returning(picture(255, 16), ["1", 0])
        whole = picture(3) | {"3": save(["1", 0])}
        first, second = results(begin(fleet, typed, whole))
        assert first.values is not None and second.files[0].data is not None


def test_another_machine_is_paired_through_it(door: str, studio: Master, tmp_path: Path) -> None:
    """The one route without a token asks for a code."""
    code = studio.post("/comfyfleet/v1/pairing", {})["code"]
    file = tmp_path / "token"
    answer = run_command("pair", door, code, "--name", "laptop", "--out", str(file))
    assert answer.returncode == 0, answer.stderr
    token = file.read_text().strip()
    assert ask(door, "/queue", token)[0] == 200
    assert ask(door, "/comfyfleet/v1/tokens", token)[0] == 403  # the owner's alone
    assert run_command("tokens", "revoke", "laptop", "--url", studio.url).returncode == 0
    assert ask(door, "/queue", token)[0] == 401
    body = {"code": "WRONGONE", "name": "x"}
    assert ask(door, "/comfyfleet/v1/pair", method="POST", body=body)[0] in (400, 403)


def test_an_open_web_socket_ends_with_its_token(studio: Master) -> None:
    tokens = Tokens(studio.folder / TOKENS_FILE)
    token = tokens.issue("passing")

    async def listen() -> aiohttp.WSMsgType:
        proxy = Proxy(studio.url, tokens, check_s=0.05)
        port = await proxy.start(Listening())
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"http://127.0.0.1:{port}/ws") as events,
        ):
            assert (await events.receive(timeout=60)).json()["type"] == "status"
            tokens.revoke("passing")
            while (message := await events.receive(timeout=60)).type is aiohttp.WSMsgType.TEXT:
                pass
        await proxy.close()
        return message.type

    assert asyncio.run(listen()) in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


def test_it_ends_at_once_also_with_open_web_sockets(studio: Master, tmp_path: Path) -> None:
    with served(studio, tmp_path / "log") as address:
        connection = open_socket(address, studio.token)
        assert b" 101 " in connection.recv(4096)
    with connection:
        connection.settimeout(60)
        while connection.recv(4096):
            pass


def open_socket(address: str, token: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 60)
    lines = ["GET /ws HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}"]
    lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_a_comfyui_that_has_gone_is_said(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / TOKENS_FILE)
    token = tokens.issue("somebody")

    async def asked() -> tuple[int, str]:
        proxy = Proxy(f"http://127.0.0.1:{free_port()}", tokens)
        port = await proxy.start(Listening())
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"http://127.0.0.1:{port}/queue") as answer,
        ):
            found = answer.status, (await answer.json())["error"]
        await proxy.close()
        return found

    status, said = asyncio.run(asked())
    assert status == 502 and "ComfyUI does not answer" in said


def test_guessing_is_slowed_down_and_holders_are_not(studio: Master, tmp_path: Path) -> None:
    with served(studio, tmp_path / "log") as address:
        codes = [ask(address, "/queue", f"guess-{i}")[0] for i in range(25)]
        assert codes[:20] == [401] * 20 and codes[-1] == 429
        assert ask(address, "/queue", studio.token)[0] == 200


def test_no_request_leads_elsewhere(door: str, studio: Master) -> None:
    """A target that is no path would become a part of the address."""
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        elsewhere = f"127.0.0.1:{trap.getsockname()[1]}"
        for target in (f"@{elsewhere}/", f"http://{elsewhere}/", f"//{elsewhere}/", "*"):
            assert raw_status(door, target, studio.token) in (400, 404), target
        with pytest.raises(BlockingIOError):
            trap.accept()


def raw_status(address: str, target: str, token: str) -> int:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}"]
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return int(connection.recv(4096).split()[1])


def test_a_token_of_the_owners_making(
    studio: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR_TOKEN", OWN)
    with served(studio, tmp_path / "log", "--token-env", "DOOR_TOKEN") as address:
        assert ask(address, "/comfyfleet/v1/status", OWN)[0] == 200
    assert OWN not in (tmp_path / "log").read_text()


def test_over_tls(studio: Master, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True)
    tls = ["--tls-cert", str(cert), "--tls-key", str(key)]
    with served(studio, tmp_path / "log", *tls) as address:
        assert address.startswith("https:")
        assert asyncio.run(status_of(Endpoint(url=address, token=studio.token, ca=cert))) == 200
        with pytest.raises(Unreachable, match="its TLS certificate is not trusted"):
            asyncio.run(status_of(Endpoint(url=address, token=studio.token)))


async def status_of(endpoint: Endpoint) -> int:
    link = Link(endpoint, patience_s=60.0)
    try:
        return (await link.ask("GET", "/queue"))[0]
    finally:
        await link.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-cert", "x.pem"], "both or none"),
        (["--token-env", "NOT_SET_ANYWHERE"], "is empty or not set"),
        (["--url", "http://10.0.0.1:8188"], "give a ComfyUI of this machine"),
    ],
)
def test_what_is_wrong_is_said(options: list[str], said: str) -> None:
    answer = run_command("serve", *options)
    assert answer.returncode == 2 and said in answer.stderr


def test_a_port_that_is_taken(studio: Master) -> None:
    answer = run_command("serve", "--url", studio.url, "--port", str(studio.port))
    assert answer.returncode == 3 and "Choose another --listen or --port" in answer.stderr


def test_it_waits_for_a_comfyui_that_still_starts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [str(COMFYFLEET), "serve", "--url", f"http://127.0.0.1:{free_port()}"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "Waiting for it" in log.read_text(), "the line")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
