"""How a gang finds together: followers announce themselves, the leader says who is which rank."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.distributed import FileStore, Store

from comfyfleet.errors import InputError
from comfyfleet.parallel.comm import Place

_ROSTER = "roster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a follower gets to find its gang, and its own name there.

    ``gang`` is the name of a file in the fleet's folder: no path, as anybody may send a prompt.

    ``shape`` is that of the latent, for the memory that a forward takes.
    """

    gang: str
    name: str
    shape: tuple[int, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Ticket:
        """Raises ValueError, KeyError or TypeError for what ``to_json`` did not write."""
        found = json.loads(text)
        return cls(gang=found["gang"], name=found["name"], shape=tuple(found["shape"]))


def new_gang() -> str:
    """A name for a gang."""
    return f"gang-{uuid.uuid4().hex[:12]}"


def store_of(folder: Path, gang: str) -> FileStore:
    """Where the ranks of a gang find each other: a file below the fleet's folder.

    Raises InputError for what is not a gang's name.
    """
    if not re.fullmatch(r"gang-[0-9a-f]{12}", gang):
        raise InputError(f"no gang is called {gang!r}; ComfyFleet writes this input by itself.")
    return FileStore(str(folder / gang), -1)


def is_over(folder: Path, gang: str) -> bool:
    """Has the leader gone its way? It makes the file first and removes it last."""
    return not (folder / gang).exists()


def announce(store: Store, name: str) -> None:
    """Say that this follower can begin."""
    store.set(f"ready/{name}", "")


def is_ready(store: Store, name: str) -> bool:
    """Has this follower announced itself?"""
    return bool(store.check([f"ready/{name}"]))


def call_up(store: Store, names: Sequence[str], backend: str) -> None:
    """Say who takes part, in rank order after the leader; all others go home."""
    store.set(_ROSTER, json.dumps({"names": list(names), "backend": backend}))


def take_place(store: Store, name: str, device: torch.device) -> Place | None:
    """Wait for the leader's word; this follower's place, or None if it is not needed."""
    roster = json.loads(store.get(_ROSTER))
    if name not in roster["names"]:
        return None
    rank, size = 1 + roster["names"].index(name), 1 + len(roster["names"])
    return Place(rank=rank, size=size, device=device, backend=roster["backend"])
