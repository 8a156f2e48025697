"""docs/parity.md, as the tests measured it."""

from __future__ import annotations


class Table:
    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], float] = {}

    def note(self, row: str, column: str, error: float) -> None:
        self.errors[row, column] = error

    def check(self) -> None:
        """To come."""
