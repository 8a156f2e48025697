"""One Ray node of a cluster that others can reach, by Ray's own command: its options and its life.

Never started without a token, unless the cluster has none and its owner insists.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from comfyfleet.errors import FleetError
from comfyfleet.fleet.guard import SESSION_MARK

#: Ray's resource of which a worker on the CPU takes one.
CPU_SLOT = "comfyfleet_cpu"
#: What Ray's command prints when the node is part of the cluster.
_STARTED = "Ray runtime started."
_START_S = 90.0
#: Ray's processes end by themselves in about a second.
_END_S = 5.0
#: Of Ray's own words, shown if it does not start.
_LAST_CHARACTERS = 600

#: Settings of Ray for every process that is part of a cluster.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # macOS and Windows: be reachable by other machines.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    # ComfyUI offloads models into memory until it is nearly full, which is no reason to kill it.
    "RAY_memory_monitor_refresh_ms": "0",
}


def cluster_settings(token_file: Path | None) -> dict[str, str]:
    """Ray's variables for a cluster with this token; None: a cluster without authentication."""
    if token_file is None:
        return {**_SETTINGS, "RAY_AUTH_MODE": "disabled"}
    return {**_SETTINGS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """A node to start. ``head``: where it is or, for a head, on which port it listens."""

    folder: Path
    token_file: Path | None
    #: None: this node is the head.
    head: str | None
    port: int
    #: This machine's address as the others see it; None: Ray finds it.
    address: str | None
    gpus: int = 0
    cpu_slots: int = 0
    #: Its shared memory; None: Ray takes a part of what the machine has.
    object_store_bytes: int | None = None
    #: Further variables of the node and of all workers on it.
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def ray_folder(self) -> Path:
        """Where Ray keeps its files."""
        return self.folder / "ray"

    def command(self) -> list[str]:
        """Ray's command line."""
        where = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        if self.head is not None:
            where = [f"--address={self.head}"]
        if self.address is not None:
            where.append(f"--node-ip-address={self.address}")
        offers = ["--num-cpus=0", f"--num-gpus={self.gpus}"]
        if self.cpu_slots:
            offers.append(f"--resources={json.dumps({CPU_SLOT: self.cpu_slots})}")
        if self.object_store_bytes is not None:
            offers.append(f"--object-store-memory={self.object_store_bytes}")
        rest = ["--disable-usage-stats", "--block", f"--temp-dir={self.ray_folder}"]
        return [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *offers, *rest]

    def variables(self) -> dict[str, str]:
        """The environment of all of the node's processes."""
        # The variable would win over the file, and stand in the environment of every process.
        inherited = {name: os.environ[name] for name in os.environ if name != "RAY_AUTH_TOKEN"}
        settings = cluster_settings(self.token_file)
        return {**inherited, **settings, SESSION_MARK: str(self.folder), **self.environment}


class RayNode:
    """A node's processes. They carry the mark of the plan's folder, for a guard to end them."""

    def __init__(self, plan: NodePlan) -> None:
        """Start it; see ``wait_until_up``."""
        self._log = plan.folder / "ray-start.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                plan.command(),
                env=plan.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for us: we end the node.
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        """Raises FleetError with Ray's words if it does not become part of the cluster."""
        pause = threading.Event()
        for _ in range(int(_START_S / 0.1)):
            if _STARTED in self._said():
                return
            if self._process.poll() is not None:
                break
            pause.wait(0.1)
        self.end()
        raise FleetError(f"Ray's node did not start: {self.last_words()}")

    def wait(self) -> int:
        """Wait for its end, whatever ends it; the exit code."""
        return self._process.wait()

    def end(self) -> None:
        """Leave the cluster; what does not end in time is killed."""
        if self._process.poll() is not None:
            return
        family = [psutil.Process(self._process.pid)]
        family += family[0].children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        for process in psutil.wait_procs(family, _END_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """The end of what Ray's command has printed."""
        return self._said()[-_LAST_CHARACTERS:].strip()

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")
