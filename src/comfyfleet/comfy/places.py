"""Where files of workers go in the master's folders: numbered on, and nothing overwritten."""

from __future__ import annotations

import logging
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
from comfy_execution.progress import NodeState, get_progress_state
from comfy_execution.utils import get_executing_context

from comfyfleet.client.names import named_entries
from comfyfleet.comfy.prompts import running_prompt_ids
from comfyfleet.errors import FleetError
from comfyfleet.work import SavedFile

logger = logging.getLogger(__name__)

#: ComfyUI's names: a stem, a number of five digits or more, and the rest.
_NUMBERED = re.compile(r"(?P<stem>.*_)(?P<number>\d{5,})(?P<rest>\D.*)", re.DOTALL)

#: A file with its time of change and size, as it is written down.
_WRITTEN_DOWN = re.compile(r"(?P<changed>\d+) (?P<size>\d+) (?P<path>.+)", re.DOTALL)

#: How often it is looked whether the master's node has saved.
_LOOK_S = 0.02

#: A file as ComfyUI's outputs name it: type, subfolder, filename.
Entry = tuple[str, str, str]


class Placed(NamedTuple):
    """A file that a prompt has saved here, and when it was changed last (ns) and its size (bytes).

    By these it is told from what somebody else has put there since, under the same name.
    """

    entry: Entry
    stamp: tuple[int, int]

    @property
    def is_there(self) -> bool:
        """Is it still this very file?"""
        return _stamp(path_of(self.entry)) == self.stamp

    def __str__(self) -> str:
        """As ``Places.find`` reads it."""
        changed, size = self.stamp
        return f"{changed} {size} {path_of(self.entry)}"


class _Claim(NamedTuple):
    """A prompt's node of the master that writes files from a number on."""

    prompt_id: str
    node_id: str
    number: int


class Places:
    """Gives files their place. One for the process, as it counts together with its nodes.

    A node asks ComfyUI for the next number and writes that file, and perhaps more, a while later.
    Until it has ended, nobody else gets a number of that stem.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Folder and stem -> who of the master is about to write there, or was the last.
        self._claims: dict[tuple[str, str], _Claim] = {}

    def watch_own_nodes(self) -> None:
        """See which numbers nodes of this process are given."""
        give = folder_paths.get_save_image_path

        def watched(*args: Any, **options: Any) -> tuple[str, str, int, str, str]:
            with self._lock:
                given: tuple[str, str, int, str, str] = give(*args, **options)
                context = get_executing_context()
                if context is not None:
                    claim = _Claim(str(context.prompt_id), str(context.node_id), given[2])
                    self._claim(os.path.realpath(given[0]), f"{given[1]}_", claim)
                return given

        folder_paths.get_save_image_path = watched

    def _claim(self, folder: str, stem: str, claim: _Claim) -> None:
        # A process runs one prompt at a time.
        now = {at: c for at, c in self._claims.items() if c.prompt_id == claim.prompt_id}
        last = now.get((folder, stem))
        if last is None or last.node_id != claim.node_id:  # else it asks for each item of a list
            now[folder, stem] = claim
        self._claims = now

    def saved_here(self, prompt_id: str, node_id: str, ui: Mapping[str, Any]) -> dict[int, Placed]:
        """The files that a node of this process has just saved, of all that its output names.

        By their ordinals among these, as of a worker's. Only what the node was given a number for:
        it may name older files too.
        """
        named = ((entry, _stamp(path_of(entry))) for entry in named_entries(ui))
        there = [Placed(entry, stamp) for entry, stamp in named if stamp is not None]
        return {
            ordinal: file
            for ordinal, file in enumerate(there)
            if self._is_new(prompt_id, node_id, file.entry)
        }

    def _is_new(self, prompt_id: str, node_id: str, entry: Entry) -> bool:
        named = _NUMBERED.fullmatch(entry[2])
        if named is None or not (folder := _folder_of(entry)):
            return False
        with self._lock:
            claim = self._claims.get((str(folder), named["stem"]))
        if claim is None or claim[:2] != (prompt_id, node_id):
            return False
        return int(named["number"]) >= claim.number

    def place(
        self,
        file: SavedFile,
        numbers: dict[str, int],
        at: Placed | None = None,
        note: Callable[[Placed], None] = lambda placed: None,
    ) -> Placed:
        """Put the file into this ComfyUI's folder of its kind; its new name.

        ``at`` is where an earlier attempt has put it: that file is replaced, if nobody has changed
        it since. ``numbers`` remembers the numbers that a worker's own became, so that what a node
        saves together stays together. ``note`` is told before the file is there: see ``find``.
        """
        assert file.data is not None
        folder = _folder_of(file.key, foreign=file.foreign)
        if folder is None or not _is_name(file.name):
            base = folder_paths.get_directory_by_type(file.kind)
            raise ValueError(f"{file.subfolder}/{file.name} lies outside of {base}.")
        if at is not None and at.is_there:  # its name may hold another time than this attempt's
            return _write(path_of(at.entry).parent, at.entry, file.data, note)
        folder.mkdir(parents=True, exist_ok=True)
        named = _NUMBERED.fullmatch(file.name)
        if named is None and file.foreign and os.path.lexists(folder / file.name):
            # A node of ours that saves twice replaces its file; others begin to count.
            path = Path(file.name)
            named = _NUMBERED.fullmatch(f"{path.stem}_00001_{path.suffix}")
        if named is None:
            return _write(folder, file.key, file.data, note)
        return self._numbered(folder, named, file, numbers, note)

    def find(self, text: str) -> Placed | None:
        """A file that an earlier ComfyUI has placed; None if it is not in this one's output folder.

        It may have another one, or have been killed before the file was there; and somebody may
        have changed it. What lies in temp is this one's: each empties that folder when it starts.
        """
        written = _WRITTEN_DOWN.fullmatch(text)
        if written is None:
            return None
        base = Path(os.path.abspath(folder_paths.get_output_directory()))
        file = Path(os.path.abspath(written["path"]))
        if not file.is_relative_to(base):
            return None
        subfolder = file.parent.relative_to(base).as_posix()
        entry = ("output", "" if subfolder == "." else subfolder, file.name)
        found = Placed(entry, (int(written["changed"]), int(written["size"])))
        return found if found.is_there else None

    def remove(self, file: Placed) -> None:
        """Take away a file of an attempt which came to nothing, or that is there anew."""
        try:
            if file.is_there:  # and not another of its name
                path_of(file.entry).unlink()
        except OSError:  # on Windows somebody may have it open
            logger.warning("%s is there a second time", path_of(file.entry), exc_info=True)

    def _numbered(
        self,
        folder: Path,
        named: re.Match[str],
        file: SavedFile,
        numbers: dict[str, int],
        note: Callable[[Placed], None],
    ) -> Placed:
        key = f"{file.kind}/{file.subfolder}/{named['stem']}{named['number']}"
        assert file.data is not None
        with self._unclaimed(folder, named["stem"]):
            if key not in numbers:
                numbers[key] = _next_number(folder, named["stem"])
            digits = str(numbers[key]).zfill(len(named["number"]))
            entry = (file.kind, file.subfolder, f"{named['stem']}{digits}{named['rest']}")
            return _write(folder, entry, file.data, note)

    @contextmanager
    def _unclaimed(self, folder: Path, stem: str) -> Iterator[None]:
        """Hold the lock while no node of this process is about to write files of the stem."""
        pause = threading.Event()
        while True:
            with self._lock:
                claim = self._claims.get((str(folder), stem))
                if claim is None or not _runs(claim):
                    yield
                    return
            pause.wait(_LOOK_S)


def _is_name(name: str) -> bool:
    """One name, and none of a folder."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def series_of(name: str) -> str:
    """What a file is called but for ComfyUI's number, which another attempt gets another one of."""
    named = _NUMBERED.fullmatch(name)
    return f"{named['stem']}{named['rest']}" if named else name


def path_of(entry: Entry) -> Path:
    """Where a file lies, absolute."""
    kind, subfolder, name = entry
    return Path(os.path.abspath(Path(folder_paths.get_directory_by_type(kind), subfolder, name)))


def _folder_of(entry: Entry, *, foreign: bool = False) -> Path | None:
    """The folder of a file, links followed; None if it lies outside of the folder of its kind.

    A link there, to another disk perhaps, is the owner's and followed as ComfyUI does; but not for
    a ``foreign`` machine.
    """
    kind, subfolder, _ = entry
    base = Path(folder_paths.get_directory_by_type(kind)).resolve()
    named = Path(os.path.abspath(base / subfolder))
    folder = named.resolve()
    return folder if (folder if foreign else named).is_relative_to(base) else None


def _runs(claim: _Claim) -> bool:
    registry = get_progress_state()
    prompt_id = claim.prompt_id
    if str(registry.prompt_id) != prompt_id or prompt_id not in running_prompt_ids():
        return False
    state = dict(registry.nodes).get(claim.node_id)
    return state is not None and state["state"] is NodeState.Running


def _next_number(folder: Path, stem: str) -> int:
    found = (_NUMBERED.fullmatch(name) for name in os.listdir(folder))
    own = (int(name["number"]) for name in found if name and name["stem"] == stem)
    return max(own, default=0) + 1


def _write(folder: Path, entry: Entry, data: bytes, note: Callable[[Placed], None]) -> Placed:
    """The whole file or nothing; ``note`` is told of it just before it is there.

    Raises FleetError if it cannot be kept.
    """
    try:
        return _written(folder, entry, data, note)
    except OSError as error:
        raise FleetError(
            f"{entry[2]}, which a worker has made, cannot be kept in {folder}: "
            f"{error.strerror or error}. Look at its rights, and at room on the disk, and queue "
            "the prompt again."
        ) from error


def _written(folder: Path, entry: Entry, data: bytes, note: Callable[[Placed], None]) -> Placed:
    handle, draft = tempfile.mkstemp(dir=folder, prefix=".comfyfleet-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(draft, 0o666 & ~_umask())
        state = os.stat(draft)
        placed = Placed(entry, (state.st_mtime_ns, state.st_size))
        note(placed)
        os.replace(draft, folder / entry[2])
    except BaseException:
        os.unlink(draft)
        raise
    return placed


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time of change and size of a file; None if there is none, or a link in its place."""
    try:
        state = path.lstat()
    except (OSError, ValueError):
        return None
    return (state.st_mtime_ns, state.st_size) if stat.S_ISREG(state.st_mode) else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
