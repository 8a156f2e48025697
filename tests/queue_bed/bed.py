"""A master whose queue is shared with two workers, gates to hold prompts, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support import Master, wait_until

PACK = Path(__file__).parent / "pack"

#: What the owner was promised of a cancel: from his word to the last node that stops.
LIMIT_S = 1.0
#: A machine that stands still for a moment makes one cancel slow; one that is slow is so each time.
_TRIES = 5

Prompt = dict[str, dict[str, Any]]


class Gates:
    """Where prompts wait until they are let through."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._names: set[str] = set()

    def prompt(self, name: str, color: int = 0, *, cls: str = "TestGate") -> Prompt:
        """A picture of one colour, saved once its gate is open."""
        self._names.add(name)
        held = {"image": ["1", 0], "folder": str(self._folder), "name": name}
        return picture(color) | {"2": {"class_type": cls, "inputs": held}, "3": save(["2", 0])}

    def open(self, *names: str) -> None:
        for name in names:
            (self._folder / f"{name}.open").touch()

    def open_all(self) -> None:
        """Let everything through that a test has left waiting."""
        self.open(*self._names)

    def reached(self, name: str) -> bool:
        return bool(self.who(name))

    def forget(self, name: str) -> None:
        """Nobody has come to the gate so far."""
        (self._folder / f"{name}.reached").unlink(missing_ok=True)

    def begin_anew(self) -> None:
        """All gates are closed, and nobody has ever been there."""
        for note in self._folder.iterdir():
            note.unlink()

    def who(self, name: str) -> str:
        """Who has come to the gate; empty if nobody has."""
        path = self._folder / f"{name}.reached"
        return path.read_text() if path.exists() else ""

    def left(self, *names: str) -> list[float]:
        """When who stood at each of these gates was interrupted, once all were; by time.monotonic.

        Whoever asks measures what a cancel takes, and not how often a test looks.
        """
        notes = [self._folder / f"{name}.left" for name in names]
        wait_until(lambda: all(n.exists() and n.read_text() for n in notes), "interrupts")
        return [float(note.read_text()) for note in notes]

    def wait(self, *names: str) -> list[str]:
        """Wait until somebody stands at each of these gates; who."""
        return [wait_until(lambda at=name: self.who(at), f"gate {name}") for name in names]


def assert_in_time(cancel: Callable[[], float]) -> None:
    """``cancel`` takes no longer than was promised; it returns the seconds, and may be repeated.

    A machine that stood still makes one late; then those in time must outnumber the late ones.
    """
    took: list[float] = []
    while 2 * sum(seconds < LIMIT_S for seconds in took) <= len(took):
        assert len(took) < _TRIES, took
        took.append(cancel())


def picture(color: int, size: int = 64) -> Prompt:
    inputs = {"width": size, "height": size, "batch_size": 1, "color": color}
    return {"1": {"class_type": "EmptyImage", "inputs": inputs}}


def save(link: list[Any], prefix: str = "shared") -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": prefix}}


def saved(color: int, prefix: str = "shared") -> Prompt:
    """A picture of one colour, saved."""
    return picture(color) | {"3": save(["1", 0], prefix)}


def fault(on: str, kind: str = "error", color: int = 0) -> Prompt:
    """A picture that raises on some workers."""
    broken = {"class_type": "TestFault", "inputs": {"image": ["1", 0], "on": on, "kind": kind}}
    return picture(color) | {"2": broken, "3": save(["2", 0])}


def share(master: Master, *, master_computes: bool = False) -> None:
    """Share the queue, and nothing else changes."""
    state = master.post("/comfyfleet/v1/share", {"on": True, "master_computes": master_computes})
    assert state == {"on": True, "master_computes": master_computes, "note": ""}


def unshare(master: Master) -> None:
    assert not master.post("/comfyfleet/v1/share", {"on": False})["on"]


def wait_to_run(master: Master, *prompt_ids: str) -> None:
    """Wait until all of these run, as any client sees it.

    Whoever stands at a gate may be there sooner: workers begin before the queue is told of it.
    """
    wait_until(lambda: {*prompt_ids} <= {*queued(master)[0]}, "the prompts to run")


def hold(master: Master, gates: Gates, *names: str) -> dict[str, str]:
    """Prompts that run, and stand at gates of these names; their ids by who runs them."""
    ids = [master.queue(gates.prompt(name, i)) for i, name in enumerate(names)]
    who = gates.wait(*names)
    wait_to_run(master, *ids)
    return dict(zip(who, ids, strict=True))


def queued(master: Master) -> tuple[list[str], list[str]]:
    """The ids of the running and of the waiting prompts, as any client sees them."""
    found: Mapping[str, Any] = master.get("/queue")
    waiting = sorted(found["queue_pending"], key=lambda item: item[0])
    return [item[1] for item in found["queue_running"]], [item[1] for item in waiting]
