"""How much is taken from somebody else."""

from __future__ import annotations

import psutil


def room() -> int:
    """Bytes that one result may have: half of the memory that is free here."""
    return int(psutil.virtual_memory().available) // 2
