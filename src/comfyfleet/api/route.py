"""One route: its address, who may ask, what is given and what is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from comfyfleet.api.fields import Field, Given
from comfyfleet.errors import InputError

BASE = "/comfyfleet/v1"
JSON = "application/json"

#: What a JSON body may have at most, in bytes.
_MAX_JSON = 1024 * 1024


class Access(str, Enum):
    """Who may ask. Each level is said in docs/security.md."""

    #: Whoever holds a token, and ComfyUI's own page.
    PAGE = "page"
    #: Whoever holds a token.
    TOKEN = "token"
    #: The owner's own token, and ComfyUI's own page if it is open on this very machine.
    OWNER = "owner"
    #: Whoever knows the code that the owner has just asked for.
    CODE = "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of ours, complete: nothing else is read from a request than is said here."""

    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE"]
    #: Below ``BASE``, with the fields of ``path_fields`` in braces.
    path: str
    access: Access
    summary: str
    #: What is answered with 200: the name of a schema if it is JSON.
    answer: str
    path_fields: Sequence[Field] = ()
    query: Sequence[Field] = ()
    #: The fields of its JSON body; None if it reads none.
    body: Sequence[Field] | None = None
    #: The content types of what it reads, where that is no JSON, and of what it answers.
    reads: str = ""
    gives: str = JSON
    #: Bytes that a body may have at most.
    max_bytes: int = _MAX_JSON
    #: Statuses that it may answer with besides those that follow from the above, and why.
    errors: Sequence[tuple[int, str]] = ()

    @property
    def address(self) -> str:
        return BASE + self.path

    def read_url(self, path: Given, query: Given) -> dict[str, Any]:
        """The checked fields of the path and the query. Raises InputError."""
        found = {field.name: field.parse(path[field.name]) for field in self.path_fields}
        return found | {field.name: field.parse(query.get(field.name)) for field in self.query}

    def read_body(self, body: Any) -> dict[str, Any]:
        """The checked fields of a JSON body. Raises InputError."""
        fields = self.body or ()
        if not isinstance(body, dict):
            raise InputError("the body must be a JSON object.")
        unknown = sorted(set(body) - {field.name for field in fields})
        if unknown:
            known = ", ".join(field.name for field in fields)
            raise InputError(f"the body has {unknown[0][:80]!r}; it may have {known}.")
        return {field.name: field.read(body.get(field.name)) for field in fields}

    def __post_init__(self) -> None:
        named = re.findall(r"{(\w+)}", self.path)
        assert named == [field.name for field in self.path_fields], f"{self.path}: {named}"
