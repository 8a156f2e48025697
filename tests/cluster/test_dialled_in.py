"""A worker that nobody can reach dials in and is used through its line."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
import urllib.error
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import aiohttp
import pytest
import torch
from aiohttp import web
from safetensors.torch import save_file

from comfyfleet.client.dial import PATH
from comfyfleet.client.mux import Kind
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens
from tests.client.hostile import STATS, Handler, Hostile, an_hour_ago, answering, served
from tests.queue_bed.bed import PACK, Gates, fault, saved
from tests.remote_bed.said import assert_said
from tests.support import COMFYFLEET, Master, run_command, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def studio(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """The ComfyUI that shall use the other one; it has no worker of its own."""
    folder = tmp_path_factory.mktemp("studio")
    running = Master(comfyui, folder, workers="0", packs={"queue_bed": PACK})
    yield running
    running.close()


@pytest.fixture(scope="module")
def garage(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """The ComfyUI behind NAT."""
    folder = tmp_path_factory.mktemp("garage")
    running = Master(comfyui, folder, workers="0", packs={"queue_bed": PACK})
    yield running
    running.close()


def join(studio: Master, url: str, *, token: str = "", name: str = "garage") -> list[str]:
    """``url``: of the one behind NAT, whichever that is."""
    return ["join", studio.url, "--token", token or studio.token, "--name", name, "--url", url]


@contextmanager
def joined(
    studio: Master, url: str, log: Path, *, ends_with: int = 130, **given: str
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        command = [str(COMFYFLEET), *join(studio, url, **given)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "joined http" in log.read_text(), f"the line: {log}", 60)
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == ends_with, log.read_text()
    finally:
        process.kill()
        process.wait()


def workers(studio: Master) -> dict[str, str]:
    return {each["id"]: each["state"] for each in studio.get("/comfyfleet/v1/status")["workers"]}


def logged(studio: Master, text: str) -> None:
    wait_until(lambda: text in studio.log.read_text(), f"{text!r} in the log")


def share(studio: Master, name: str) -> None:
    """With this worker; those that have left in an earlier test are not waited for."""
    body = {"on": True, "master_computes": False}
    assert studio.post("/comfyfleet/v1/share", body)["on"]
    for other in workers(studio).keys() - {name}:
        studio.post(f"/comfyfleet/v1/workers/{other}/disable", {})


def test_its_prompts_run_there_and_survive_a_line_that_breaks(
    studio: Master, garage: Master, gates: Gates, tmp_path: Path
) -> None:
    with joined(studio, garage.url, tmp_path / "join.log"):
        share(studio, "garage")
        wait_until(lambda: workers(studio).get("garage") == "idle", "the worker", 60)
        entry = studio.run(saved(5, "joined"))
        (file,) = studio.files(entry, "3")
        assert file.read_bytes().startswith(b"\x89PNG")
        held = studio.queue(gates.prompt("held"))
        gates.wait("held")
        assert workers(studio)["garage"] == "busy"
    with joined(studio, garage.url, tmp_path / "again.log"):
        gates.open("held")
        entry = studio.finish(held)
        assert entry["status"]["status_str"] == "success"
        assert garage.get("/history")  # it ran there
        taken = run_command(*join(studio, garage.url))
        assert taken.returncode == 2 and "is there; choose another --name" in taken.stderr
    assert studio.post("/comfyfleet/v1/share", {"on": False})["on"] is False


def test_a_plain_one_beside_which_the_command_runs(
    comfyui: Path, studio: Master, tmp_path: Path
) -> None:
    """Nothing of ours is in that ComfyUI."""
    plain = Master(comfyui, tmp_path / "plain", workers="0", plain=True)
    with closing(plain), joined(studio, plain.url, tmp_path / "log", name="attic"):
        share(studio, "attic")
        wait_until(lambda: workers(studio).get("attic") == "idle", "the worker", 60)
        entry = studio.run(saved(9, "attic"))
        (file,) = studio.files(entry, "3")
        assert file.read_bytes().startswith(b"\x89PNG")
        assert plain.get("/history"), "it ran there"
    assert not studio.post("/comfyfleet/v1/share", {"on": False})["on"]


def test_what_is_wrong_with_it_is_said(studio: Master, tmp_path: Path) -> None:
    """Until its ComfyUI runs, is no old one, and has what a prompt needs."""
    bad = Hostile()
    system = {**STATS["system"], "comfyui_version": "0.3.40"}
    wrong: dict[str, Handler] = {
        "it closed the connection without an answer; is ComfyUI running there": hang_up,
        r"it answers \(404\), but not as a ComfyUI does; check it": answering({}, status=404),
        r"a proxy answers \(502\), and not the ComfyUI": answering({}, status=502),
        r"0\.3\.40; 0\.3\.75 is needed: update": answering({**STATS, "system": system}),
    }
    with served(bad) as (url,), joined(studio, url, tmp_path / "log", name="shed"):
        bad.instead["/system_stats"] = hang_up
        share(studio, "shed")
        for said, handler in wrong.items():
            bad.instead["/system_stats"] = handler
            studio.post("/comfyfleet/v1/workers/shed/restart", {})
            assert_said(studio, rf"http://shed\.joined.*{said}")
        bad.instead["/system_stats"] = answering(STATS, Date=an_hour_ago())
        studio.post("/comfyfleet/v1/workers/shed/restart", {})
        wait_until(lambda: workers(studio).get("shed") == "idle", "the worker", 60)
        assert_said(studio, r"its clock is off by -3\d{3} s; set it, for certificates and logs")
        prompt_id = studio.queue(fault("nobody"))  # those that are paused could run it
        said = "http://shed.joined lacks node class TestFault: install the packs of such nodes"
        assert_said(studio, said)
        studio.post("/queue", {"delete": [prompt_id]})
    assert not studio.post("/comfyfleet/v1/share", {"on": False})["on"]


async def hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def test_a_model_is_copied_to_it(studio: Master, garage: Master, tmp_path: Path) -> None:
    model = studio.base / "models" / "vae" / "small.safetensors"
    model.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.zeros(3 << 20)}, model)
    (garage.base / "models" / "vae").mkdir(parents=True, exist_ok=True)
    (garage.folder / "fleet.yaml").write_text("settings:\n  accept_models: true\n")
    with joined(studio, garage.url, tmp_path / "log"):
        said = run_command("models", "copy", model.name, "--to", "garage", "--url", studio.url)
        assert said.returncode == 0, said.stderr
        assert "small.safetensors to garage: 100%, is there" in said.stdout
    there = garage.base / "models" / "vae" / model.name
    assert there.read_bytes() == model.read_bytes()


def test_a_line_ends_when_its_token_is_revoked(
    studio: Master, garage: Master, tmp_path: Path
) -> None:
    token, log = Tokens(studio.folder / TOKENS_FILE).issue("neighbour"), tmp_path / "log"
    with joined(studio, garage.url, log, token=token, name="near", ends_with=2) as process:
        share(studio, "near")
        wait_until(lambda: workers(studio).get("near") == "idle", "the worker", 60)
        revoked = run_command("tokens", "revoke", "neighbour", "--url", studio.url)
        assert revoked.returncode == 0, revoked.stderr
        assert process.wait(60) == 2, "it does not dial again"
        assert "this token is not valid, or was revoked" in " ".join(log.read_text().split())
        logged(studio, "worker near has left")
    wait_until(lambda: workers(studio).get("near") != "idle", "it to be missed")
    logged(studio, "http://near.joined: its line is broken")
    assert not studio.post("/comfyfleet/v1/share", {"on": False})["on"]


NONSENSE = {
    "a greeting without end": ("[" * 100_000, b""),
    "no greeting": ("hello", b""),
    "a stream of its own": ('{"token": ""}', struct.pack(">IB", 1, Kind.OPEN)),
    "half a frame": ('{"token": ""}', b"\0"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_one_that_speaks_nonsense_is_let_go(studio: Master, case: str) -> None:
    """Its name is free again, and nothing breaks here."""
    greeting, frame = NONSENSE[case]

    async def dial() -> None:
        headers = {"Authorization": f"Bearer {studio.token}"}
        url = f"{studio.url}{PATH}odd"
        async with aiohttp.ClientSession(headers=headers) as client, client.ws_connect(url) as line:
            await line.send_str(greeting)
            if frame:
                await line.send_bytes(frame)
            async for _ in line:
                pass

    for _ in range(2):
        asyncio.run(asyncio.wait_for(dial(), 120))
        wait_until(lambda: is_free(studio, "odd"), "its name to be free")
    assert "Traceback" not in studio.log.read_text()


def is_free(studio: Master, name: str) -> bool:
    """Could a worker of this name dial in? Else its name would be the reason."""
    try:
        studio.open(PATH + name)
    except urllib.error.HTTPError as error:
        with error:
            return "web socket" in error.read().decode()
    raise AssertionError("it is no web socket")


def test_a_wrong_token_is_refused_with_the_remedy(studio: Master, garage: Master) -> None:
    answer = run_command(*join(studio, garage.url, token="wrong", name="other"))
    assert answer.returncode == 2
    assert "this token is not valid" in answer.stderr and "comfyfleet pair" in answer.stderr


def test_nothing_there_to_join(garage: Master, studio: Master) -> None:
    answer = run_command("join", "ftp://studio:8188")
    assert answer.returncode == 2 and "give an address such as" in answer.stderr
