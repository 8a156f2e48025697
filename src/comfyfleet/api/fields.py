"""What a caller may give to a route: in its path, its query or its JSON body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from comfyfleet.errors import InputError

#: Names of workers, runs and those who hold a token: nothing that a path or a page could mistake.
NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME_RULE = "letters, digits, dots, dashes and underscores, 1 to 64, a letter or digit first"

#: So much of what was given is repeated in a sentence.
_SHOWN = 80

#: The fields of a call by name, all of them; None for what was not given and has no default.
Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value that a caller gives, and what is allowed."""

    name: str
    help: str
    kind: Literal["boolean", "integer", "number", "string"] = "string"
    required: bool = False
    default: Any = None
    #: Of numbers, which always have them; inclusive.
    low: float | None = None
    high: float | None = None
    #: Of text: a regular expression for all of it, in words ``rule``; or the only values.
    pattern: str | None = None
    rule: str = ""
    choices: Sequence[str] = ()
    #: What it measures, for the sentence of a number out of range.
    unit: str = ""

    def read(self, value: Any) -> Any:
        """A value of JSON, checked. Raises InputError."""
        if value is None and not self.required:
            return self.default
        if not self._allows(value):
            raise InputError(f"{self.name} is {_shown(value)}; {self._allowed}.")
        return float(value) if self.kind == "number" else value

    def parse(self, text: str | None) -> Any:
        """A value of a path or a query, where all is text. Raises InputError."""
        if self.kind == "integer" and text is not None:
            digits = text.isascii() and text.isdecimal() and len(text) < 17
            return self.read(int(text) if digits else text)
        return self.read(text)

    def schema(self) -> dict[str, Any]:
        """As JSON Schema, for the description of our routes."""
        found: dict[str, Any] = {"type": self.kind, "description": self.help}
        limits = {"minimum": self.low, "maximum": self.high, "default": self.default}
        found |= {name: value for name, value in limits.items() if value is not None}
        if self.pattern:
            found["pattern"] = self.pattern
        if self.choices:
            found["enum"] = list(self.choices)
        return found

    def _allows(self, value: Any) -> bool:
        if self.kind == "boolean":
            return isinstance(value, bool)
        if self.kind == "string":
            return isinstance(value, str) and self._allows_text(value)
        kinds = (int,) if self.kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        assert self.low is not None and self.high is not None, f"{self.name} has no limits"
        return bool(self.low <= value <= self.high)

    def _allows_text(self, text: str) -> bool:
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # JSON has halves of letters
            return False
        if self.choices:
            return text in self.choices
        return self.pattern is None or re.search(self.pattern.replace("$", r"\Z"), text) is not None

    @property
    def _allowed(self) -> str:
        if self.choices:
            return f"choose one of {', '.join(self.choices)}"
        if self.kind == "boolean":
            return "give true or false"
        if self.kind == "string":
            return f"give {self.rule or 'text'}"
        what = self.unit or ("a whole number" if self.kind == "integer" else "a number")
        return f"give {what}, {self.low:.15g} to {self.high:.15g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def named(what: str, name: str = "name") -> Field:
    """A required field that holds a name; ``what`` is named by it."""
    return Field(name=name, help=what, required=True, pattern=NAME_PATTERN, rule=NAME_RULE)
