"""A real ComfyUI with our pack and the benchmarks', as its user would start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyfleet.config import find_comfyui

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 180.0


class Server:
    """A running ComfyUI on the CPU."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self.folder = folder

    def run(self, prompt: Mapping[str, Any]) -> float:
        """Run a prompt; its seconds, as ComfyUI's own history has them."""
        prompt_id = self._ask("/prompt", {"prompt": prompt})["prompt_id"]
        while not (entry := self._ask(f"/history/{prompt_id}").get(prompt_id)):
            time.sleep(0.05)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(f"the prompt failed: {entry['status']['messages']}")
        at = {name: what["timestamp"] for name, what in entry["status"]["messages"]}
        return float(at["execution_success"] - at["execution_start"]) / 1000

    def answers(self) -> bool:
        """Is it up?"""
        try:
            self._ask("/queue")
        except (OSError, urllib.error.URLError):
            return False
        return True

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=data, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def comfyui_server(workers: str) -> Iterator[Server]:
    """A ComfyUI whose fleet has these workers; it and they have one thread each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "custom_nodes").mkdir()
        (folder / "custom_nodes" / "comfyfleet").symlink_to(_ROOT)
        (folder / "custom_nodes" / "bench").symlink_to(_ROOT / "benchmarks" / "pack")
        port = _free_port()
        command = [sys.executable, "main.py", "--cpu", "--port", str(port)]
        command += ["--base-directory", name, "--database-url", "sqlite:///:memory:"]
        environment = {**os.environ, "COMFYFLEET_WORKERS": workers, "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=find_comfyui(), env=environment, stdout=log, stderr=log
            )
        try:
            server = Server(f"http://127.0.0.1:{port}", folder)
            _wait(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while not server.answers():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
