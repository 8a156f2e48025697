"""What crosses from the leader to its followers: one forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One forward of a diffusion model: the arguments of its ``_forward``."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
