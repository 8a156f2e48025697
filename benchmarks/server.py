"""A real ComfyUI with our pack and the benchmarks', as its user would start it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.namespaces import Host
from comfyfleet.api import BASE
from comfyfleet.config import find_comfyui
from comfyfleet.fleet.registry import FleetRecord, read_records
from comfyfleet.fleet.tokens import TOKENS_FILE, own_token

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 180.0
#: Every process that a server has started, directly or not, inherits it.
_MARK = "COMFYFLEET_BENCHMARK"


class Server:
    """A ComfyUI on the CPU in a folder of its own, where it may be started again.

    It, and its workers, have one thread each.
    """

    def __init__(
        self,
        folder: Path,
        workers: str,
        host: Host | None = None,
        *,
        master_computes: bool = False,
    ) -> None:
        """``host``: where it runs, and listens; this machine's loopback if it is not given.

        ``master_computes``: whether it runs prompts of a shared queue itself too.
        """
        self.folder = folder
        self._master_computes = master_computes
        self._host = host
        self._mark = uuid.uuid4().hex
        self._workers = workers
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None
        nodes = folder / "custom_nodes"
        nodes.mkdir()
        (nodes / "comfyfleet").symlink_to(_ROOT)
        (nodes / "bench").symlink_to(_ROOT / "benchmarks" / "pack")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when it answers."""
        port = _free_port()
        address = self._host.address if self._host else "127.0.0.1"
        self._url = f"http://{address}:{port}"
        command = [sys.executable, "main.py", "--cpu", "--port", str(port)]
        if self._host:
            inside = ["ip", "netns", "exec", self._host.namespace]
            command = [*inside, *command, "--listen", address]
        command += ["--base-directory", str(self.folder), "--database-url", "sqlite:///:memory:"]
        environment = {
            **os.environ,
            "COMFYFLEET_WORKERS": self._workers,
            "OMP_NUM_THREADS": "1",
            _MARK: self._mark,
        }
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=find_comfyui(), env=environment, stdout=log, stderr=log
            )
        end = time.monotonic() + _START_S
        while not (self._has_begun() if self._host else self._answers()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-2000:]}")
            time.sleep(0.1)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process by a signal; killed if it does not end. Safe to call twice."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def share(self) -> None:
        """Let the workers run prompts; returns when they are there."""
        asked = {"on": True, "master_computes": self._master_computes}
        self.ask("/comfyfleet/v1/share", asked)

    def tell_worker(self, worker_id: str, action: str) -> None:
        """As the owner may: enable, disable, restart, of one worker or of ``all``."""
        self.ask(f"/comfyfleet/v1/workers/{worker_id}/{action}", {})

    def fleet(self) -> FleetRecord | None:
        """The fleet that this process has now."""
        return next((each for each in read_records() if each.owner_pid == self.pid), None)

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._url

    @property
    def token(self) -> str:
        """The owner's, for routes of ours."""
        return own_token(self.folder / "user" / "comfyfleet" / TOKENS_FILE)

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queue a prompt; its id."""
        return str(self.ask("/prompt", {"prompt": prompt})["prompt_id"])

    def queued(self) -> set[str]:
        """The ids of all prompts that run or wait."""
        found = self.ask("/queue")
        return {item[1] for item in (*found["queue_running"], *found["queue_pending"])}

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What ComfyUI says of a prompt that has ended."""
        entry: dict[str, Any] | None = self.ask(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def finish(self, prompt_id: str) -> dict[str, Any]:
        """Wait for a prompt to end; its history. Raises RuntimeError if it failed."""
        while not (entry := self.history(prompt_id)):
            time.sleep(0.1)  # not more often: each look costs a CPU on which workers compute
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(f"the prompt failed: {entry['status']['messages']}")
        return entry

    def run(self, prompt: Mapping[str, Any]) -> float:
        """Run a prompt; its seconds, as ComfyUI's own history has them."""
        entry = self.finish(self.queue(prompt))
        at = {name: what["timestamp"] for name, what in entry["status"]["messages"]}
        return float(at["execution_success"] - at["execution_start"]) / 1000

    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """All living processes that it has started in all its lives, itself included."""
        return [process for process in psutil.process_iter() if self._started(process)]

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """GET, or POST with a body; the JSON that came."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if path.startswith(BASE):
            token = own_token(self.folder / "user" / "comfyfleet" / TOKENS_FILE)
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self._url + path, data=data, headers=headers)
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def _has_begun(self) -> bool:
        """As its own log says: nobody outside reaches the namespace that it is in."""
        return "To see the GUI go to" in self.log()

    def _answers(self) -> bool:
        try:
            self.ask("/queue")
        except (OSError, urllib.error.URLError):
            return False
        return True

    def _started(self, process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get(_MARK) == self._mark
        except (psutil.Error, OSError):
            return False


@contextmanager
def comfyui_server(workers: str, *, master_computes: bool = False) -> Iterator[Server]:
    """A running ComfyUI whose fleet has these workers. Nothing is left of it."""
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), workers, master_computes=master_computes)
        try:
            server.start()
            yield server
        finally:
            server.end()
            wait_until(lambda: not server.processes(), 120)


def wait_until(check: Callable[[], object], timeout_s: float) -> bool:
    """Look until it is true; False if it did not become so in time."""
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


#: They keep free ports for whom they were found.
_held: list[socket.socket] = []


def _free_port() -> int:
    """Held, so that nobody else is given it; servers set SO_REUSEADDR, and may listen."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return int(held.getsockname()[1])
