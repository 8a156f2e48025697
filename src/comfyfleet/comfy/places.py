"""Where files of workers go in the master's folders: numbered on, and nothing overwritten."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.progress import NodeState, get_progress_state
from comfy_execution.utils import get_executing_context

from comfyfleet.comfy.prompts import running_prompt_ids
from comfyfleet.work import SavedFile

#: ComfyUI's names: a stem, a number of five digits or more, and the rest.
_NUMBERED = re.compile(r"(?P<stem>.*_)(?P<number>\d{5,})(?P<rest>\D.*)", re.DOTALL)

#: How often it is looked whether the master's node has saved.
_LOOK_S = 0.02

#: A file as ComfyUI's outputs name it: type, subfolder, filename.
Entry = tuple[str, str, str]


class Places:
    """Gives files their place. One for the process, as it counts together with its nodes.

    A node asks ComfyUI for the next number and writes that file, and perhaps more, a while later.
    Until it has ended, nobody else gets a number of that stem.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Folder and stem -> prompt and node of the master that is about to write there.
        self._claims: dict[tuple[str, str], tuple[str, str]] = {}

    def watch_own_nodes(self) -> None:
        """See which numbers nodes of this process are given."""
        give = folder_paths.get_save_image_path

        def watched(*args: Any, **options: Any) -> tuple[str, str, int, str, str]:
            with self._lock:
                given: tuple[str, str, int, str, str] = give(*args, **options)
                context = get_executing_context()
                if context is not None:
                    claim = (str(context.prompt_id), str(context.node_id))
                    self._claims[os.path.realpath(given[0]), f"{given[1]}_"] = claim
                return given

        folder_paths.get_save_image_path = watched

    def place(
        self,
        file: SavedFile,
        numbers: dict[str, int],
        at: Entry | None = None,
        note: Callable[[Entry], None] = lambda entry: None,
    ) -> Entry:
        """Put the file into this ComfyUI's folder of its kind; its new name.

        ``at`` is a place that it had before (it is replaced). ``numbers`` remembers the numbers
        that a worker's own became, so that what a node saves together stays together. ``note`` is
        told of a new place before the file is there: see ``has``.
        """
        assert file.data is not None
        base = Path(folder_paths.get_directory_by_type(file.kind))
        folder = (base / file.subfolder).resolve()
        if not folder.is_relative_to(base.resolve()) or not _is_name(file.name):
            raise ValueError(f"{file.subfolder}/{file.name} lies outside of {base}.")
        if at is not None:  # its name may hold another time than this attempt's
            before = _path(at)
            before.parent.mkdir(parents=True, exist_ok=True)
            _write(before, file.data)
            return at
        folder.mkdir(parents=True, exist_ok=True)
        named = _NUMBERED.fullmatch(file.name)
        if named is None and file.foreign and os.path.lexists(folder / file.name):
            # A node of ours that saves twice replaces its file; others begin to count.
            path = Path(file.name)
            named = _NUMBERED.fullmatch(f"{path.stem}_00001_{path.suffix}")
        if named is None:
            note(file.key)
            _write(folder / file.name, file.data)
            return file.key
        return self._numbered(folder, named, file, numbers, note)

    def has(self, entry: Entry) -> bool:
        """Is the file there? One that was noted may be not, if this process was killed then."""
        return _path(entry).is_file()

    def remove(self, entry: Entry) -> None:
        """Take away a file that was placed for an attempt which came to nothing."""
        _path(entry).unlink(missing_ok=True)

    def _numbered(
        self,
        folder: Path,
        named: re.Match[str],
        file: SavedFile,
        numbers: dict[str, int],
        note: Callable[[Entry], None],
    ) -> Entry:
        key = f"{file.kind}/{file.subfolder}/{named['stem']}{named['number']}"
        assert file.data is not None
        with self._unclaimed(folder, named["stem"]):
            if key not in numbers:
                numbers[key] = _next_number(folder, named["stem"])
            digits = str(numbers[key]).zfill(len(named["number"]))
            entry = (file.kind, file.subfolder, f"{named['stem']}{digits}{named['rest']}")
            note(entry)
            _write(folder / entry[2], file.data)
        return entry

    @contextmanager
    def _unclaimed(self, folder: Path, stem: str) -> Iterator[None]:
        """Hold the lock while no node of this process is about to write files of the stem."""
        pause = threading.Event()
        while True:
            with self._lock:
                claim = self._claims.get((str(folder), stem))
                if claim is None or not _runs(*claim):
                    self._claims.pop((str(folder), stem), None)
                    yield
                    return
            pause.wait(_LOOK_S)


def _is_name(name: str) -> bool:
    """One name, and none of a folder."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def _path(entry: Entry) -> Path:
    kind, subfolder, name = entry
    return Path(folder_paths.get_directory_by_type(kind)) / subfolder / name


def _runs(prompt_id: str, node_id: str) -> bool:
    registry = get_progress_state()
    if str(registry.prompt_id) != prompt_id or prompt_id not in running_prompt_ids():
        return False
    state = dict(registry.nodes).get(node_id)
    return state is not None and state["state"] is NodeState.Running


def _next_number(folder: Path, stem: str) -> int:
    found = (_NUMBERED.fullmatch(name) for name in os.listdir(folder))
    own = (int(name["number"]) for name in found if name and name["stem"] == stem)
    return max(own, default=0) + 1


def _write(path: Path, data: bytes) -> None:
    """The whole file or nothing."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".comfyfleet-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
