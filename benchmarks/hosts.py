"""Two hosts as a Ray cluster, and one of them is cut off in the middle of a run.

The hosts are network namespaces of this machine. Each offers the cluster one worker on the CPU;
``comfyfleet run`` has the head's host as its own. Pictures are random numbers by a seed, so the
files that an undisturbed run saves are known before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos import SIDE, digest_of, noise
from benchmarks.common import bench_flags
from benchmarks.namespaces import Host, Network, two_hosts, why_not
from benchmarks.server import wait_until
from comfyfleet.config import find_comfyui
from comfyfleet.errors import InputError

UNITS = 32
CUT_S = 10.0
#: The link goes when so many units are done, and both workers have some.
_CUT_AFTER = 8
_PAUSE_S = 0.8
_START_S = 120.0
_RUN_S = 300.0
_SEED = 1000
_COMMAND = Path(sys.executable).with_name("comfyfleet")
_DONE = re.compile(r"^\d+/\d+: run (\d+) on (\S+) in", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A ``comfyfleet run`` in the cluster."""

    process: subprocess.Popen[bytes]
    log: Path
    out: Path

    def done(self) -> list[tuple[int, str]]:
        """What it has said to be done: runs and their workers."""
        text = self.log.read_text(errors="replace")
        return [(int(run), worker) for run, worker in _DONE.findall(text)]

    def pictures(self) -> list[str]:
        """The digests of all files that it has saved."""
        return [digest_of(path) for path in sorted(self.out.glob("*.png"))]


class TwoHosts:
    """A head and a node with one worker each."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.token_file = folder / "token"
        self.head, self.node = network.hosts
        self._started: list[subprocess.Popen[bytes]] = []
        #: The commands that are head and node.
        self.nodes: list[subprocess.Popen[bytes]] = []
        offer = ("--token-file", str(self.token_file), "--cpu-slots", "1")
        own = ("--address", self.head.address)
        self._serve(self.head, ["head", *own, *offer], "The head of a cluster runs")
        self._serve(self.node, ["join", self.head.address, "--gpus", "0", *offer], "offered to")

    def run(self, prompt: dict[str, Any], *options: str) -> Job:
        """Begin to run a workflow on both hosts' workers, from the head's host."""
        number = len(self._started)
        file, log = self.folder / f"{number}.json", self.folder / f"{number}.log"
        file.write_text(json.dumps(prompt), encoding="utf-8")
        out = self.folder / f"out{number}"
        where = ["--cluster", self.head.address, "--workers", "0", "--out", str(out)]
        command = ["run", str(file), *where, *options, "--", *bench_flags(self.folder)]
        return Job(process=self.start(self.head, command, log), log=log, out=out)

    def close(self) -> list[psutil.Process]:
        """End everything by SIGTERM; what is left after that."""
        for process in reversed(self._started):
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            process.wait(30)
        wait_until(lambda: not self._left(), 20)
        return self._left()

    def log_of(self, host: Host) -> str:
        """What the host's ``head`` or ``join`` has printed."""
        return (self.folder / f"{host.namespace}.log").read_text(errors="replace")

    def start(
        self, host: Host, command: Sequence[str], log: Path, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start ``comfyfleet`` on a host; ``close`` ends it."""
        usual = {
            "COMFYUI_PATH": str(find_comfyui()),
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }
        with log.open("wb") as target:
            process = host.start(
                [str(_COMMAND), *command], log=target, environment={**usual, **environment}
            )
        self._started.append(process)
        return process

    def _left(self) -> list[psutil.Process]:
        return [each for host in self.network.hosts for each in host.processes()]

    def _serve(self, host: Host, command: Sequence[str], said: str) -> None:
        log = self.folder / f"{host.namespace}.log"
        process = self.start(host, command, log)
        self.nodes.append(process)
        if not wait_until(
            lambda: said in self.log_of(host) or process.poll() is not None, _START_S
        ):
            raise RuntimeError(f"{command[0]} does not start: {self.log_of(host)}")
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} has ended: {self.log_of(host)}")


@contextmanager
def cluster_of_two() -> Iterator[TwoHosts]:
    """Two hosts with their Ray; afterwards nothing of them is there. Raises InputError."""
    if reason := why_not():
        raise InputError(f"no hosts can be made here: {reason}.")
    with two_hosts() as network, tempfile.TemporaryDirectory() as folder:
        hosts = TwoHosts(network, Path(folder))
        try:
            yield hosts
        finally:
            left = hosts.close()
            if left:
                raise RuntimeError(f"processes are left: {[_said_of(each) for each in left]}")


def _said_of(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}, which has ended since"


def prompt_of(pause_s: float = _PAUSE_S) -> dict[str, Any]:
    """A picture by its seed, after a pause."""
    picture = {"seed": _SEED, "count": 1, "side": SIDE}
    pause = {"image": ["1", 0], "seconds": pause_s, "orders": ""}
    save = {"images": ["2", 0], "filename_prefix": "hosts"}
    return {
        "1": {"class_type": "BenchImages", "inputs": picture},
        "2": {"class_type": "BenchPause", "inputs": pause},
        "3": {"class_type": "SaveImage", "inputs": save},
    }


def run() -> dict[str, Any]:
    """``lost`` and ``duplicated`` are pictures; ``by_worker`` says who made how many."""
    with cluster_of_two() as hosts:
        job = hosts.run(prompt_of(), "--count", str(UNITS))
        begun = _wait_for_both(job)
        hosts.network.cut()
        time.sleep(CUT_S)
        during = len(job.done())
        hosts.network.heal()
        if job.process.wait(_RUN_S) != 0:
            raise RuntimeError(f"the run failed:\n{job.log.read_text()[-3000:]}")
        return {**compare(job, UNITS), "before_cut": begun, "before_heal": during}


def compare(job: Job, units: int) -> dict[str, Any]:
    """What a run has delivered and saved against what it should have."""
    wanted = Counter(noise(_SEED + run, 1)[0] for run in range(units))
    there, told = Counter(job.pictures()), Counter(run for run, _ in job.done())
    return {
        "units": units,
        "lost": (wanted - there).total(),
        "duplicated": (there - wanted).total() + (told - Counter(range(units))).total(),
        "by_worker": dict(sorted(Counter(worker for _, worker in job.done()).items())),
    }


def _wait_for_both(job: Job) -> int:
    def ready() -> bool:
        done = job.done()
        return len(done) >= _CUT_AFTER and len({worker for _, worker in done}) == 2

    if not wait_until(lambda: ready() or job.process.poll() is not None, _RUN_S) or not ready():
        raise RuntimeError(f"the run does not begin on both hosts:\n{job.log.read_text()[-3000:]}")
    return len(job.done())
