"""docs/parity.md: a section per version of ComfyUI, as the tests measured it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
INTRO = """# Parity

N ranks compute what one rank computes. Each row is a small model of ComfyUI's own class with
random weights and one set of inputs; each cell is the largest relative error (L2, float32, on the
CPU) of the ranks' outputs against the unsplit forward. The bound is 1e-5. `make test` measures the
cells anew and writes this page.

A dash (-): this case has nothing to split that way (a batch of one picture), or its model is
refused and runs by conditionings, by batch or alone; [Parallel Model](parallel-model.md) says which
and why.
"""


class Table:
    """The errors of a run; written if the run was complete."""

    def __init__(self, version: str, rows: Sequence[str], columns: Sequence[str]) -> None:
        self._version = version
        self._rows = rows
        self._columns = columns
        self._errors: dict[tuple[str, str], float] = {}
        self._begun: set[tuple[str, str]] = set()

    def begin(self, row: str, column: str) -> None:
        """A cell is about to be measured, or skipped."""
        self._begun.add((row, column))

    def note(self, row: str, column: str, error: float) -> None:
        """What was measured."""
        self._errors[row, column] = error

    def write(self) -> None:
        """Replace this version's section of the page, after a run of all cells."""
        if len(self._begun) < len(self._rows) * len(self._columns):
            return
        old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        sections = dict(re.findall(r"^(## ComfyUI .*)\n((?:(?!## ComfyUI ).*\n?)*)", old, re.M))
        sections[f"## ComfyUI {self._version}"] = "\n" + "\n".join(self._lines()) + "\n"
        body = [f"{title}\n\n{text.strip()}\n" for title, text in sorted(sections.items())]
        PAGE.write_text("\n".join([INTRO, *body]), encoding="utf-8")

    def _lines(self) -> list[str]:
        measured = [
            row for row in self._rows if any((row, c) in self._errors for c in self._columns)
        ]
        head = ["| Model | " + " | ".join(self._columns) + " |"]
        head.append("| --- |" + " --- |" * len(self._columns))
        return head + [
            f"| {row} | " + " | ".join(self._cell(row, column) for column in self._columns) + " |"
            for row in measured
        ]

    def _cell(self, row: str, column: str) -> str:
        error = self._errors.get((row, column))
        if error is None:
            return "-"
        if error == 0:
            return "0"
        # Rounded up to a power of ten: the digits differ from machine to machine.
        return next(f"< 1e-{power}" for power in (7, 6, 5, 0) if error < 10.0**-power)
