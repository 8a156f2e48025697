"""Values that were computed elsewhere and came with a unit, while its prompt runs here."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from typing import Any

from comfyfleet.comfy.values import unpack
from comfyfleet.errors import ComfyFleetError
from comfyfleet.work import Packed

#: Owner (a prompt, a collection) -> its values by digest.
_held: dict[str, Mapping[str, Packed]] = {}


def hold(owner: str, values: Mapping[str, Packed]) -> None:
    """Keep values until ``drop``."""
    _held[owner] = values


def drop(owner: str) -> None:
    """Forget an owner's values; nothing happens if it has none."""
    _held.pop(owner, None)


def take(digest: str) -> Any:
    """A copy of the value with this digest. Raises ComfyFleetError if nobody holds it."""
    for values in list(_held.values()):
        if digest in values:
            return unpack(values[digest])
    raise ComfyFleetError(
        f"the value {digest[:12]} did not come with this prompt. Fleet Shipped is placed by "
        "ComfyFleet alone; remove it from the workflow."
    )


def digest_of(packed: Packed) -> str:
    """SHA-256 of a packed value: equal for equal bits, so that ComfyUI's cache knows it again."""
    found = hashlib.sha256(pickle.dumps(packed.skeleton, protocol=5))
    for buffer in packed.buffers:
        found.update(memoryview(buffer))
    return found.hexdigest()
