"""What others say of themselves, as it may be shown: in a terminal, a log, a page."""

from __future__ import annotations

from typing import Any

#: Beyond any device's memory.
_MAX_BYTES = 1 << 60


def plain(text: Any, length: int, *, lines: bool = False) -> str:
    """At most ``length`` characters of a text, none of which steers a terminal.

    With ``lines`` its line ends and tabs stay.
    """
    kept = "\n\t" if lines else ""
    short = str(text)[:length] if isinstance(text, str | int | float) else ""
    return "".join(each if each.isprintable() or each in kept else "\ufffd" for each in short)


def size(number: Any) -> int:
    """A number of bytes; 0 for what is none."""
    if not isinstance(number, int | float) or not 0 <= number <= _MAX_BYTES:
        return 0
    return int(number)
