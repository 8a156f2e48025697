"""Input files for another machine, each sent once: they are named by their content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.client.background import in_background
from comfyfleet.client.digests import sha256_of
from comfyfleet.graph import find_files, is_file
from comfyfleet.work import Prompt

#: Where they lie there, below the input folder.
FOLDER = "comfyfleet"
#: Of the digest, which is the name there.
DIGITS = 40
#: Of the suffixes that a loader may look at.
_SUFFIX = re.compile(r"\.[a-z0-9_-]{1,16}")
#: Names of new files, not of files that are read.
_NOT_READ = frozenset({"filename_prefix", "text"})


@dataclass(frozen=True, slots=True)
class Parcel:
    """A prompt with the names that its files have elsewhere, and where each of them lies here."""

    prompt: dict[str, Mapping[str, Any]]
    #: Name below ``FOLDER`` there -> file here.
    files: Mapping[str, Path]

    @property
    def names(self) -> frozenset[str]:
        """As the prompt names them."""
        return frozenset(f"{FOLDER}/{name}" for name in self.files)


def read_piece(path: Path, start: int) -> bytes:
    """The bytes of a file from there on, ``PIECE_BYTES`` at most. Raises OSError."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(PIECE_BYTES)


class Files:
    """What prompts name in ComfyUI's input, output and temp folders here (``folders``)."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        #: (path, time of change, size) -> digest: large files are read once.
        self._digests: dict[tuple[str, int, int], str] = {}

    async def pack(self, prompt: Prompt) -> Parcel:
        """Name all files of a prompt by their content. Raises OSError."""
        renamed: dict[tuple[str, str], dict[str, str]] = {}
        files: dict[str, Path] = {}
        for ref in find_files(prompt, self._exists):
            if ref.input not in _NOT_READ:
                path = self._folders[ref.folder] / ref.name
                name = await self._name(path)
                files[name], new = path, f"{FOLDER}/{name}"
                names = renamed.setdefault((ref.node_id, ref.input), {})
                names |= {ref.name: new, f"{ref.name} [{ref.folder}]": new}
        found = {node_id: _renamed(node_id, node, renamed) for node_id, node in prompt.items()}
        return Parcel(found, files)

    def _exists(self, folder: str, name: str) -> bool:
        base = self._folders.get(folder)
        return base is not None and is_file(base / name)

    async def _name(self, path: Path) -> str:
        # Not its own name: spaces, quotes and other alphabets have many spellings on the way.
        suffix = path.suffix.lower()
        return (await self._digest(path))[:DIGITS] + (suffix if _SUFFIX.fullmatch(suffix) else "")

    async def _digest(self, path: Path) -> str:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size)
        if key not in self._digests:
            self._digests[key] = await in_background(sha256_of, path)
        return self._digests[key]


def _renamed(
    node_id: str, node: Mapping[str, Any], renamed: Mapping[tuple[str, str], Mapping[str, str]]
) -> Mapping[str, Any]:
    inputs = node.get("inputs", {})
    changed = {
        name: _replaced(value, renamed[node_id, name])
        for name, value in inputs.items()
        if (node_id, name) in renamed
    }
    return {**node, "inputs": {**inputs, **changed}} if changed else node


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    """A literal with other names in it, however deep."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, names) for key, item in value.items()}
    return [_replaced(item, names) for item in value] if isinstance(value, list) else value
