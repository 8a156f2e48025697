"""Values that stand as text in a node: one per line, each converted to a type."""

from __future__ import annotations

from typing import Any

from comfyfleet.errors import InputError

_CONVERT: dict[str, Any] = {
    "STRING": str,
    "INT": int,
    "FLOAT": float,
    "BOOLEAN": lambda text: {"true": True, "false": False}[text.strip().lower()],
}

#: What a line can be converted to.
VALUE_TYPES = tuple(_CONVERT)


def value_lines(text: str) -> list[str]:
    """Return the values that a text holds, one on each line that is not blank."""
    values = [line.strip() for line in text.splitlines() if line.strip()]
    if not values:
        raise InputError("input 'values' is empty; write one value per line")
    return values


def convert(text: str, type: str) -> Any:
    """A line as STRING, INT, FLOAT or BOOLEAN. Raises InputError naming line and type."""
    if type not in _CONVERT:
        raise InputError(f"type {type!r}: give one of {', '.join(_CONVERT)}.")
    try:
        return _CONVERT[type](text)
    except (ValueError, KeyError):
        raise InputError(f"{text!r} is no {type}: write one {type} per line.") from None
