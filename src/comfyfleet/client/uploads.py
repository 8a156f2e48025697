"""Input files for another machine's ComfyUI, each sent once: they are named by their content."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp

from comfyfleet.client.link import Link
from comfyfleet.errors import InputError, Unreachable
from comfyfleet.graph import find_files
from comfyfleet.work import Prompt

#: Where they lie there, below the input folder.
_FOLDER = "comfyfleet"
#: Names of new files, not of files that are read.
_NOT_READ = frozenset({"filename_prefix", "text"})


class Uploads:
    """Sends what prompts name. ``folders``: ComfyUI's input, output and temp folders here."""

    def __init__(self, link: Link, folders: Mapping[str, Path]) -> None:
        self._link = link
        self._folders = folders
        #: (path, time of change, size) -> digest: large files are read once.
        self._digests: dict[tuple[str, int, int], str] = {}

    async def send(self, prompt: Prompt) -> tuple[dict[str, Mapping[str, Any]], frozenset[str]]:
        """Send the files that are not there; the prompt with their new names, and those names.

        Raises Unreachable if they do not arrive, InputError if they are refused.
        """
        renamed: dict[tuple[str, str], dict[str, str]] = {}
        for ref in find_files(prompt, self._exists):
            if ref.input not in _NOT_READ:
                new = await self._send(self._folders[ref.folder] / ref.name)
                names = renamed.setdefault((ref.node_id, ref.input), {})
                names |= {ref.name: new, f"{ref.name} [{ref.folder}]": new}
        found = {node_id: _renamed(node_id, node, renamed) for node_id, node in prompt.items()}
        sent = frozenset(new for names in renamed.values() for new in names.values())
        return found, sent

    def _exists(self, folder: str, name: str) -> bool:
        base = self._folders.get(folder)
        return base is not None and (base / name).is_file()

    async def _send(self, path: Path) -> str:
        # Not its own name: spaces, quotes and other alphabets have many spellings on the way.
        name = (await self._digest(path))[:40] + path.suffix.lower()

        async def send() -> None:
            if not await self._is_there(name, path.stat().st_size):
                await self._upload(name, path)

        await self._link.patiently(send)
        return f"{_FOLDER}/{name}"

    async def _digest(self, path: Path) -> str:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size)
        if key not in self._digests:
            self._digests[key] = await asyncio.to_thread(_digest_of, path)
        return self._digests[key]

    async def _is_there(self, name: str, size: int) -> bool:
        query = urlencode({"filename": name, "subfolder": _FOLDER, "type": "input"})

        async def ask() -> bool:
            async with self._link.request("HEAD", f"/view?{query}") as response:
                length = response.headers.get("Content-Length")
                return response.status == 200 and length == str(size)

        return await self._link.patiently(ask)

    async def _upload(self, name: str, path: Path) -> None:
        form = aiohttp.FormData()
        with path.open("rb") as file:
            form.add_field("image", file, filename=name)
            for key, value in {"type": "input", "subfolder": _FOLDER, "overwrite": "true"}.items():
                form.add_field(key, value)
            way = self._link.request("POST", "/upload/image", sends=path.stat().st_size, data=form)
            async with way as response:
                status = response.status
        if status == 413:
            raise InputError(
                f"{path.name} is larger than {self._link.url} accepts; start ComfyUI there with a "
                "larger --max-upload-size."
            )
        if status != 200:
            told = (
                f"it answered {status} to an upload of {path.name}; is its disk full? See its log"
            )
            raise Unreachable(self._link.url, told)


def _digest_of(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


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
