"""Where a unit's results wait, inside the worker's process, until the fleet takes them.

The internal node ``FleetReturn`` deposits under the key that stands in its graph; whoever sent the
graph takes them by that key. Values stay as they are: tensors in this process's memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

_lock = threading.Lock()
_deposits: OrderedDict[str, dict[str, list[Any]]] = OrderedDict()
#: A worker runs one unit at a time; whoever asked for older ones has gone.
_KEPT = 8


def deposit(key: str, values: dict[str, list[Any]]) -> None:
    """Keep what arrived at each input (always a list: one entry, or a list output's entries)."""
    with _lock:
        _deposits[key] = values
        while len(_deposits) > _KEPT:
            _deposits.popitem(last=False)


def take(key: str) -> dict[str, list[Any]] | None:
    """Remove and return what was deposited under ``key``; None if nothing was."""
    with _lock:
        return _deposits.pop(key, None)
