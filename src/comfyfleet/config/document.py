"""The text of fleet.yaml: read with the lines that errors name, written with its comments."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from comfyfleet.config.schema import Document, Place, key_of, problems_of
from comfyfleet.errors import InputError

#: More is no file of ours.
_MAX_BYTES = 1 << 20


def read_text(path: Path) -> str:
    """The file's text; empty if there is none. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than 1 MiB; it is no fleet.yaml.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: is not UTF-8; save it as UTF-8.") from None


def parse(text: str, path: Path) -> CommentedMap:
    """The text as a mapping that knows its lines and comments. Raises InputError for no YAML."""
    try:
        found = _yaml().load(text)
    except MarkedYAMLError as error:
        raise InputError(_not_yaml(path, error)) from None
    except Exception as error:  # odd tags and depths fail in the parser with whatever comes
        raise InputError(f"{path} is no YAML that can be read: {type(error).__name__}.") from None
    if found is None:
        return CommentedMap()
    if not isinstance(found, CommentedMap):
        raise InputError(f"{path}, line 1: write KEY: VALUE, with the keys {_keys()}.")
    return found


def validate(data: CommentedMap, path: Path) -> Document:
    """What the file says. Raises InputError that lists all that is wrong, each with its line."""
    try:
        return Document.model_validate(plain(data))
    except ValidationError as error:
        found = [(line_of(data, place), place, text) for place, text in problems_of(error)]
    found.sort(key=lambda each: each[0])
    raise InputError(
        "\n".join(f"{path}, line {line}: {key_of(place)} {text}." for line, place, text in found)
    )


def render(data: CommentedMap, before: str) -> str:
    """The text of changed data, with the comments of the text that it was parsed from."""
    lines = [line for line in before.splitlines() if line.lstrip().startswith("#")]
    comments = "".join(f"{line}\n" for line in lines)
    if not data:
        return comments
    out = io.StringIO()
    _yaml().dump(data, out)
    # Where there was no key, comments hang on nothing.
    return out.getvalue() if _yaml().load(before) else comments + out.getvalue()


def line_of(data: Any, place: Place) -> int:
    """The line, from 1, of the last step of a place that the file has."""
    line = 0
    for step in place:
        if isinstance(data, CommentedMap) and step in data:
            at = data.lc.key(step)  # None in an ordered map (!!omap)
            line = at[0] if at else line
        elif isinstance(data, CommentedSeq) and isinstance(step, int):
            line = data.lc.item(step)[0]
        else:
            break
        data = data[step]
    return int(line) + 1


def plain(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """The same of Python's own types; what stands twice by an alias is one object here too."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        mapping: dict[str, Any] = {}
        seen[id(value)] = mapping
        mapping.update((str(key), plain(each, seen)) for key, each in value.items())
        return mapping
    if isinstance(value, list):
        entries: list[Any] = []
        seen[id(value)] = entries
        entries.extend(plain(each, seen) for each in value)
        return entries
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def _yaml() -> YAML:
    """A parser and writer for one text: it keeps what an error has left in it."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _keys() -> str:
    return ", ".join(Document.model_fields)


def _not_yaml(path: Path, error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{path}, line {mark.line + 1}" if mark else f"{path}"
    # Its own words for a key that stands twice show the values, which may be secrets.
    twice = re.match(r'found duplicate key "([^"\n]*)"', error.problem or "")
    if twice:
        return f"{where}: the key {twice[1]!r} stands twice; remove one."
    return f"{where}: is no YAML: {error.problem or error.context}."
