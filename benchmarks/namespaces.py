"""Two hosts on one machine: network namespaces with a link between them that can be slow, or cut.

A host has an address and a loopback of its own, and reaches nothing but the other host. Files and
process numbers are those of the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from benchmarks import link


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A network namespace."""

    namespace: str
    address: str

    def start(
        self, command: Sequence[str], *, log: IO[bytes], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process there."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def processes(self) -> list[psutil.Process]:
        """All that live there."""
        text = _ip("netns", "pids", self.namespace)
        return [psutil.Process(int(pid)) for pid in text.split() if psutil.pid_exists(int(pid))]


class Network:
    """Two hosts and what is between them."""

    def __init__(self, hosts: tuple[Host, Host], wire: subprocess.Popen[str]) -> None:
        self.hosts = hosts
        self._wire = wire

    def shape(self, *, delay_s: float, megabits_per_s: float) -> None:
        """Each way takes so long, and carries no more."""
        self._tell(f"shape {delay_s} {megabits_per_s * 1e6}")

    def cut(self) -> None:
        """Nothing gets through, and nobody is told."""
        self._tell("cut")

    def heal(self) -> None:
        self._tell("heal")

    def _tell(self, order: str) -> None:
        assert self._wire.stdin and self._wire.stdout
        self._wire.stdin.write(f"{order}\n")
        self._wire.stdin.flush()
        if self._wire.stdout.readline() != "done\n":
            raise RuntimeError("the link between the hosts has ended")


def why_not() -> str:
    """Why no hosts can be made here; empty if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not Path("/dev/net/tun").exists():
        return "hosts need the command ip and /dev/net/tun"
    name = f"cf{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return "this system does not let us make network namespaces"
    _ip("netns", "delete", name)
    return ""


@contextmanager
def two_hosts() -> Iterator[Network]:
    """Two hosts; afterwards they are gone, with every process that is left in them."""
    tag = secrets.token_hex(3)
    hosts = tuple(
        Host(namespace=f"cf{tag}-{number}", address=f"10.213.7.{number}") for number in (1, 2)
    )
    with ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.namespace)
            stack.callback(_remove, host)
        wire = stack.enter_context(_wire([host.namespace for host in hosts]))
        for host in hosts:
            inside = ("-n", host.namespace)
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "address", "add", f"{host.address}/24", "dev", link.DEVICE)
            _ip(*inside, "link", "set", link.DEVICE, "up")
        yield Network((hosts[0], hosts[1]), wire)


@contextmanager
def _wire(namespaces: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, link.__file__, *namespaces],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the link between the hosts did not start")
        try:
            yield process
        finally:
            process.stdin.close()


def _remove(host: Host) -> None:
    for process in host.processes():
        process.kill()
    _ip("netns", "delete", host.namespace)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
