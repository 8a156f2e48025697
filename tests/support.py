"""Real processes for the tests: a ComfyUI with our pack, the command, and what they leave."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from comfyfleet.api import BASE
from comfyfleet.fleet import guard
from comfyfleet.fleet.tokens import TOKENS_FILE, own_token

ROOT = Path(__file__).resolve().parent.parent
COMFYFLEET = Path(sys.executable).with_name("comfyfleet")


def wait_until(check: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    """Poll ``check`` until it gives something true; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)
    return value


#: Every process that this run of the tests starts inherits it.
TEST_RUN = "COMFYFLEET_TEST_RUN"
# Where tests run in several processes each has a mark of its own, and so have its children.
_mark = f"{os.environ.get('PYTEST_XDIST_WORKER', '')}."
if not os.environ.get(TEST_RUN, "").startswith(_mark):
    os.environ[TEST_RUN] = f"{_mark}{uuid.uuid4().hex}"


def lives(pid: int) -> bool:
    """Does this process run? One that has ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked_processes(*, ours: bool = True) -> list[tuple[psutil.Process, str]]:
    """Processes of fleets' sessions with their folders; only those that these tests started."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue
        session = environment.get(guard.SESSION_MARK)
        mine = environment.get(TEST_RUN) == os.environ[TEST_RUN]
        if session and alive and (mine or not ours):
            found.append((process, session))
    return found


def run_command(*args: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run ``comfyfleet`` to its end."""
    command = [str(COMFYFLEET), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def fleets(owner_pid: int) -> list[dict[str, Any]]:
    """What ``comfyfleet status --json`` says of one owner's fleets."""
    answer = run_command("status", "--json")
    assert answer.returncode == 0, answer.stderr
    records = json.loads(answer.stdout.splitlines()[-1])
    return [record for record in records if record["owner_pid"] == owner_pid]


def worker_pids(owner_pid: int) -> list[int]:
    """Process ids of the workers of one owner, once its fleet is up."""
    records = wait_until(lambda: fleets(owner_pid), "the fleet's record")
    return [worker["pid"] for record in records for worker in record["workers"]]


class Master:
    """A real ComfyUI process with our pack among its custom nodes, in a folder of its own."""

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        *,
        workers: str,
        packs: Mapping[str, Path] | None = None,
        flags: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        plain: bool = False,
        python: str = sys.executable,
    ) -> None:
        """In a folder where one was before, it finds what that has left. ``plain``: no pack.

        ``python`` has what a ComfyUI of another version needs.
        """
        self.base = base
        nodes = base / "custom_nodes"
        nodes.mkdir(parents=True, exist_ok=True)
        ours = {} if plain else {"comfyfleet": ROOT}
        for name, path in {**ours, **(packs or {})}.items():
            if not (nodes / name).is_symlink():
                (nodes / name).symlink_to(path)
        self.log = base / "master.log"
        given = dict(itertools.pairwise(flags))
        #: What ComfyUI keeps of us.
        self.folder = Path(given.get("--user-directory", base / "user")) / "comfyfleet"
        self.port = free_port()
        command = [python, "main.py", "--cpu", "--port", str(self.port)]
        command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
        command += flags
        self.log.write_bytes(b"")
        own = {"COMFYFLEET_WORKERS": workers, **(settings or {})}
        self._process_of = lambda: self._process(command, comfyui, own)
        self._start()

    def restart(self) -> None:
        """End it and start it anew at the same address."""
        self.close()
        self._start()

    def _start(self) -> None:
        """One that never answers is ended: nobody else knows of it."""
        self.process = self._process_of()
        try:
            wait_until(self._answers, f"ComfyUI: {self.log}", timeout_s=180)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _process(
        self, command: Sequence[str], folder: Path, settings: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=folder,
                # Where each thread stands is in the log if `close` finds that it does not end.
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            self.get("/queue")
        except OSError:
            return False
        return True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """The owner's, which opens our routes there; empty without our pack."""
        path = self.folder / TOKENS_FILE
        return own_token(path) if path.exists() else ""

    def headers(self, path: str) -> dict[str, str]:
        """The owner's token, for routes of ours."""
        return {"Authorization": f"Bearer {self.token}"} if path.startswith(BASE) else {}

    def open(self, path: str) -> Any:
        """The answer to GET, as it comes."""
        request = urllib.request.Request(self.url + path, headers=self.headers(path))
        return urllib.request.urlopen(request)

    def get(self, path: str) -> Any:
        with self.open(path) as answer:
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", **self.headers(path)}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def delete(self, path: str) -> Any:
        request = urllib.request.Request(
            self.url + path, headers=self.headers(path), method="DELETE"
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def states(self) -> dict[str, str]:
        """What each worker does."""
        workers = self.get(f"{BASE}/status")["workers"]
        return {each["id"]: each["state"] for each in workers}

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queue a prompt as any client does; its id."""
        try:
            return str(self.post("/prompt", {"prompt": prompt})["prompt_id"])
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def finish(self, prompt_id: str, timeout_s: float = 240.0) -> dict[str, Any]:
        """The history entry of a prompt, once it has ended."""
        entry = wait_until(
            lambda: self.get(f"/history/{prompt_id}").get(prompt_id), "the prompt", timeout_s
        )
        return dict(entry)

    def run(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a prompt and wait for its end; asserts that it succeeded."""
        return self.succeed(self.queue(prompt))

    def succeed(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt, once it has ended; asserts that it succeeded."""
        entry = self.finish(prompt_id)
        assert entry["status"]["status_str"] == "success", error_of(entry)
        return entry

    def files(self, entry: Mapping[str, Any], node_id: str) -> list[Path]:
        """What an output node saved."""
        folder = self.base / "output"
        saved = entry["outputs"][node_id]
        return [folder / each["subfolder"] / each["filename"] for each in saved["images"]]

    def close(self) -> None:
        """End it as its owner does; asserts that it ends."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(60)
            raise AssertionError(self.log.read_text()[-20000:]) from None
        finally:
            self.process.kill()
            self.process.wait()


def error_of(entry: Mapping[str, Any]) -> str:
    """The error's text in a history entry."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return str(data["exception_message"])
    return json.dumps(entry["status"])


#: They keep free ports for whom they were found.
_held: list[socket.socket] = []


def free_port() -> int:
    """A port on which nobody listens but who is told of it, as long as this process runs.

    It stays bound, so that the system gives it to nobody else, who may begin to listen sooner. A
    server can listen on it all the same, as servers set SO_REUSEADDR.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return int(held.getsockname()[1])
