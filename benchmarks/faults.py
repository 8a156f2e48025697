"""What may go wrong with a fleet, done to a running one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import Server

#: The workers of a server with ``cpu,cpu``.
WORKERS = ("cpu-0", "cpu-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong ``at_s`` seconds after a run has begun."""

    kind: str
    at_s: float
    worker: str
    #: Of those that pass by themselves.
    lasts_s: float

    def __str__(self) -> str:
        where = "" if self.kind.startswith("master") else f" {self.worker}"
        lasts = f" for {self.lasts_s:.1f} s" if self.kind in _PASSING else ""
        return f"{self.kind}{where} at {self.at_s:.2f} s{lasts}"


class Saboteur:
    """Does faults to one server, and takes back what does not pass by itself."""

    def __init__(self, server: Server, orders: Path) -> None:
        self._server = server
        self._orders = orders
        self._frozen: set[int] = set()
        self._blocked: list[Path] = []
        #: The master has been started again: its history began anew.
        self.restarted = False

    def do(self, fault: Fault) -> None:
        """Let it happen now. A worker that is just being started again is spared."""
        _DEEDS[fault.kind](self, fault.worker)

    def undo(self, fault: Fault) -> None:
        """Its time is over."""
        if fault.kind == "stopped":
            self._signal_frozen()
        elif fault.kind == "slowed":
            (self._orders / f"{fault.worker}.slow").unlink(missing_ok=True)

    def repair(self) -> None:
        """After a run: no order is left, every disk has room, and nobody is stopped."""
        for order in self._orders.iterdir():
            order.unlink()
        for path in self._blocked:
            if path.is_file():
                path.unlink()
                path.with_suffix(".full").rename(path)
        self._blocked.clear()
        self._signal_frozen()

    # The deeds.

    def kill(self, worker: str) -> None:
        self._signal(worker, signal.SIGKILL)

    def freeze(self, worker: str) -> None:
        pid = self._signal(worker, signal.SIGSTOP)
        if pid:
            self._frozen.add(pid)

    def order(self, kind: str, worker: str, text: str) -> None:
        (self._orders / f"{worker}.{kind}").write_text(text)

    def fill_disk(self, worker: str) -> None:
        """A file lies where the worker's output folder was: nothing can be saved any more."""
        fleet = self._server.fleet()
        output = Path(fleet.folder, worker, "output") if fleet else None
        if output is not None and output.is_dir():
            output.rename(output.with_suffix(".full"))
            output.touch()
            self._blocked.append(output)

    def restart_master(self, how: signal.Signals) -> None:
        self._server.end(how)
        self._frozen.clear()
        self._blocked.clear()
        self.restarted = True
        self._server.start()
        self._server.share()

    def _signal(self, worker: str, number: signal.Signals) -> int:
        """Send it to the worker's process; its id, or 0 if it has none now."""
        fleet = self._server.fleet()
        found = [each.pid for each in fleet.workers if each.id == worker] if fleet else []
        with suppress(ProcessLookupError):
            for pid in found:
                os.kill(pid, number)
                return pid
        return 0

    def _signal_frozen(self) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen.clear()


_DEEDS: Mapping[str, Callable[[Saboteur, str], None]] = {
    "killed": Saboteur.kill,
    "stopped": Saboteur.freeze,
    "frozen": Saboteur.freeze,
    "slowed": lambda who, worker: who.order("slow", worker, "20"),
    "out of memory": lambda who, worker: who.order("memory", worker, "now"),
    "disk full": Saboteur.fill_disk,
    "reply lost": lambda who, worker: who.order("reply", worker, "now"),
    "master killed": lambda who, _: who.restart_master(signal.SIGKILL),
    "master ended": lambda who, _: who.restart_master(signal.SIGINT),
}
KINDS = tuple(_DEEDS)
#: These pass by themselves.
_PASSING = ("stopped", "slowed")


def draw_faults(rng: random.Random, kinds: tuple[str, ...] = KINDS) -> list[Fault]:
    """One or two faults. Only one worker gets a kind that makes prompts fail there."""
    weak = rng.choice(WORKERS)
    faults = []
    for kind in rng.sample(kinds, k=min(rng.choice((1, 2)), len(kinds))):
        worker = weak if kind in ("out of memory", "disk full") else rng.choice(WORKERS)
        fault = Fault(kind=kind, at_s=rng.uniform(0, 2), worker=worker, lasts_s=rng.uniform(0.5, 8))
        faults.append(fault)
    return faults
