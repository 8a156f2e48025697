"""A tunnel leads to a door that asks for a token, and ends with the command, however that ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from comfyfleet.api import BASE
from comfyfleet.fleet.tokens import TOKENS_FILE, own_token
from tests.cloud_bed import cloudflared
from tests.queue_bed.bed import saved
from tests.support import COMFYFLEET, Master, run_command, wait_until

pytestmark = pytest.mark.cluster

#: Of what the command says: what to do on the other machine.
LAST_LINE = re.compile(r"comfyfleet (config add-worker NAME|join) https://.*\n")


@pytest.fixture(scope="module")
def plain(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> Iterator[Master]:
    """A ComfyUI without our extension: nothing of its own keeps anybody out."""
    running = Master(comfyui, tmp_path_factory.mktemp("plain"), workers="0", plain=True)
    yield running
    running.close()


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """What looks like the folder of a ComfyUI, for the tokens of one without our extension."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloudflared on PATH; the file in which it says who it is."""
    program = tmp_path / "bin" / "cloudflared"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{cloudflared.__file__}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("CLOUDFLARED_PATH", str(program))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "who"))
    monkeypatch.setenv("TUNNEL_TOKEN", "of another tunnel of the owner")
    return tmp_path / "who"


@contextmanager
def tunnel(
    plain: Master, installation: Path, log: Path, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(COMFYFLEET), "tunnel", "--url", plain.url, "--comfyui", str(installation)]
    command += options
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: LAST_LINE.search(log.read_text()), f"the tunnel: {log}", 60)
        yield process
    finally:
        process.kill()
        process.wait()


def status(port: str, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/queue", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_it_lets_in_who_holds_a_token_and_ends_with_us(
    end: signal.Signals, plain: Master, installation: Path, fake: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with tunnel(plain, installation, log) as process:
        pid, port = fake.read_text().split()
        said = log.read_text()
        assert "https://ten-towns-join.trycloudflare.com leads here" in said
        assert "comfyfleet config add-worker NAME https://ten-towns-join" in said
        assert status(port) == 401 and status(port, "wrong") == 401
        token = own_token(installation / "user" / "comfyfleet" / TOKENS_FILE)
        assert status(port, token) == 200 and token not in said
        process.send_signal(end)
        assert process.wait(60) in (130, -signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(int(pid)), "cloudflared to end")


def test_a_worker_dials_in_by_the_tunnel_of_a_master(
    comfyui: Path, plain: Master, fake: Path, tmp_path: Path
) -> None:
    master = Master(comfyui, tmp_path / "master", workers="0")
    with closing(master), tunnel(master, comfyui, tmp_path / "log", "--for", "master"):
        said, port = (tmp_path / "log").read_text(), fake.read_text().split()[1]
        assert "comfyfleet join https://ten-towns-join.trycloudflare.com" in said, said
        assert status(port) == 401, "nobody else"
        address, log = f"http://127.0.0.1:{port}", tmp_path / "join"
        command = ["join", address, "--token", master.token, "--name", "far", "--url", plain.url]
        with log.open("wb") as file:
            line = subprocess.Popen([str(COMFYFLEET), *command], stdout=file, stderr=file)
        try:
            wait_until(lambda: "joined http" in log.read_text(), f"the line: {log}", 60)
            # The line is there before the master knows its worker.
            wait_until(lambda: "worker far has joined" in master.log.read_text(), "the worker")
            master.post(f"{BASE}/share", {"on": True, "master_computes": False})
            wait_until(lambda: master.states().get("far") == "idle", "the worker", 60)
            assert master.files(master.run(saved(4)), "3")[0].is_file()
            assert plain.get("/history"), "it ran there"
            line.send_signal(signal.SIGINT)
            assert line.wait(60) == 130
        finally:
            line.kill()
            line.wait()


def test_the_end_of_the_program_is_said(
    plain: Master, installation: Path, fake: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with tunnel(plain, installation, log) as process:
        psutil.Process(int(fake.read_text().split()[0])).kill()
        assert process.wait(60) == 3
    assert "the tunnel has ended" in log.read_text()


@pytest.mark.parametrize(
    ("trouble", "timeout_s", "said"),
    [
        # Long enough for it to start, and to say that it begins.
        (cloudflared.SILENT, 10, "named no address in 10 s: .*Requesting new quick Tunnel"),
        (cloudflared.FAILING, 60, "cloudflared has ended: .*failed to request quick Tunnel"),
    ],
)
def test_no_address_is_said(
    trouble: str,
    timeout_s: int,
    said: str,
    plain: Master,
    installation: Path,
    fake: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_TUNNEL", trouble)
    options = ["--url", plain.url, "--comfyui", str(installation), "--timeout", str(timeout_s)]
    answer = run_command("tunnel", *options)
    assert answer.returncode == 3 and re.search(said, answer.stderr, re.DOTALL), answer.stderr
    assert not psutil.pid_exists(int(fake.read_text().split()[0]))


def test_without_the_program_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CLOUDFLARED_PATH", raising=False)
    answer = run_command("tunnel")
    assert answer.returncode == 2 and "cloudflared is not on PATH. Install it" in answer.stderr
    monkeypatch.setenv("CLOUDFLARED_PATH", str(tmp_path / "none"))
    assert "none' is no program" in run_command("tunnel", "--for", "master").stderr
    assert "give worker or master" in run_command("tunnel", "--for", "x").stderr
