"""A worker's side of the shared queue: run a client's prompt and tell all that ComfyUI tells of it.

The worker saves into a folder of its own. Files are told with the event that names them and stay
where they are, as cached nodes may name or read them again.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths

from comfyfleet.client.comfyui import ComfyClient, Message, OnProgress
from comfyfleet.client.names import named_entries
from comfyfleet.errors import ComfyFleetError
from comfyfleet.work import HISTORY, Mirrored, Prompt, SavedFile, Told

#: Bytes of told files that a worker keeps; of older ones only the names, which are never reused.
_KEPT_BYTES = 1 << 30

Tell = Callable[[Told], None]


class Shelf:
    """The files in this worker's own output and temp folders, and which of them have been told."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        #: Path -> time of change and size when it was told, in that order.
        self._told: OrderedDict[str, tuple[int, int]] = OrderedDict()
        #: What was there by then is nobody's result: it is older than this process, or of a prompt
        #: that failed here.
        self._since = time.time_ns()
        #: What was named as saved, and never was there: its disk may be full, or gone.
        self.missing: list[str] = []

    def named(self, ui: Mapping[str, Any]) -> tuple[SavedFile, ...]:
        """The files that a node's output names, each once."""
        told = (self._tell(*entry) for entry in named_entries(ui))
        return tuple(file for file in told if file is not None)

    def unnamed(self) -> tuple[SavedFile, ...]:
        """What is new in the output folder and was not named: some nodes name nothing."""
        base = Path(folder_paths.get_output_directory())
        found = []
        for path in sorted(base.rglob("*")):
            if path.is_file() and self._told.get(str(path)) != _stamp(path) and self._is_new(path):
                subfolder = path.parent.relative_to(base).as_posix()
                file = self._tell("output", "" if subfolder == "." else subfolder, path.name)
                found += [file] if file is not None else []
        return tuple(found)

    def _is_new(self, path: Path) -> bool:
        """Did it come, by whatever way, since then? A copy keeps its time of change."""
        return path.stat().st_ctime_ns >= self._since

    def write_off(self) -> None:
        """A prompt failed: what comes back of it with a disk that was gone is not of the next."""
        self._since = time.time_ns()

    def tidy(self) -> None:
        """Empty the oldest files beyond what is kept. Their names stay taken."""
        total = sum(size for _, size in self._told.values())
        for name, (_, size) in list(self._told.items()):
            if total <= self._kept_bytes:
                return
            if size and os.path.exists(name):
                os.truncate(name, 0)
                self._told[name] = _stamp(Path(name))
            total -= size

    def _tell(self, kind: str, subfolder: str, name: str) -> SavedFile | None:
        path = Path(folder_paths.get_directory_by_type(kind)) / subfolder / name
        known = self._told.get(str(path))
        if not path.is_file():
            if known is None and kind == "output":
                self.missing.append(name)
            return None
        stamp = _stamp(path)
        self._told[str(path)] = stamp
        # Told again with its bytes: whether it has come home, only the master knows.
        data = None if stamp == known and not stamp[1] else path.read_bytes()
        return SavedFile(kind=kind, subfolder=subfolder, name=name, data=data, stamp=stamp)


class MirrorRunner:
    """Runs mirrored prompts. Used on ComfyUI's event loop."""

    def __init__(self, client: ComfyClient) -> None:
        self._client = client
        self._shelf = Shelf()

    async def run(
        self, prompt: Prompt, asked: Mirrored, on_progress: OnProgress, tell: Tell
    ) -> None:
        """Run the prompt to its end, whatever that is; see ComfyClient.run for what it raises.

        Raises ComfyFleetError too if a file that was saved is not there.
        """
        self._shelf.missing.clear()
        try:
            await self._run(prompt, asked, on_progress, tell)
        except BaseException:
            self._shelf.write_off()
            raise

    async def _run(
        self, prompt: Prompt, asked: Mirrored, on_progress: OnProgress, tell: Tell
    ) -> None:
        def on_message(message: Message) -> None:
            event, data = message
            named = event == "executed" and isinstance(data.get("output"), Mapping)
            tell(Told(event, data, self._shelf.named(data["output"]) if named else ()))

        try:
            await self._client.run(
                prompt, asked.prompt_id, on_progress, asked=asked, on_message=on_message
            )
        finally:
            entry = await self._client.history(asked.prompt_id)
            if entry is not None:
                tell(Told(HISTORY, _plain(entry), self._shelf.unnamed()))
            self._shelf.tidy()
        if self._shelf.missing:
            names = ", ".join(self._shelf.missing)
            raise ComfyFleetError(f"{names} was saved, and is not in this worker's output folder.")


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("outputs", "meta", "status") if key in entry}


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size
