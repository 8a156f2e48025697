"""What runs on this machine: each fleet and each ComfyUI with us leaves a record while it lives."""

from __future__ import annotations

import atexit
import json
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from comfyfleet.errors import FleetError
from comfyfleet.work import WorkerInfo

#: Prefix of a session's folder, and the record's name in it.
PREFIX = "comfyfleet-"
_RECORD = "session.json"
#: How the names of sockets end that lead to workers which dialled in.
_DOOR = ".sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRecord:
    """A fleet of some process of this user."""

    owner_pid: int
    folder: str
    workers: tuple[WorkerInfo, ...]
    #: Where the owner answers, if it is a ComfyUI.
    url: str


def sessions_root() -> Path:
    """Where session folders are made: short, as Unix socket paths end at 107 characters."""
    return Path("/tmp") if os.path.isdir("/tmp") else Path(tempfile.gettempdir())


def write_record(folder: Path, workers: Sequence[WorkerInfo], url: str) -> None:
    """Tell ``read_records`` of this process's fleet."""
    record = FleetRecord(owner_pid=os.getpid(), folder=str(folder), workers=tuple(workers), url=url)
    draft = folder / f"{_RECORD}.new"
    draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
    draft.replace(folder / _RECORD)


def read_records() -> list[FleetRecord]:
    """All fleets of this user that are alive."""
    records = map(_read, sorted(sessions_root().glob(f"{PREFIX}*/{_RECORD}")))
    return [record for record in records if record]


def _read(path: Path) -> FleetRecord | None:
    try:
        if hasattr(os, "getuid") and path.parent.stat().st_uid != os.getuid():
            return None  # anybody may put such a folder there
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        workers = tuple(WorkerInfo(**worker) for worker in data.pop("workers"))
        record = FleetRecord(**data, workers=workers)
        return record if psutil.pid_exists(record.owner_pid) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # it ended this moment, or another version wrote it


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterRecord:
    """A ComfyUI of this user that has our routes, with or without a fleet."""

    pid: int
    #: When the process was started, as the system counts: a pid alone may come again.
    started: float
    url: str
    #: The owner's folder, in which the tokens lie.
    folder: str


def write_master(url: str, folder: Path) -> None:
    """Tell ``read_masters`` of this process, until it ends. Raises FleetError if it cannot be."""
    started = psutil.Process().create_time()
    record = MasterRecord(pid=os.getpid(), started=started, url=url, folder=str(folder))
    try:
        root = _made_root()
        path = root / f"{record.pid}.json"
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise FleetError(f"{_masters_root()} cannot be written: {error}.") from error
    atexit.register(path.unlink, missing_ok=True)


def read_masters() -> list[MasterRecord]:
    """All ComfyUIs of this user that are alive. What others have left is cleared away."""
    root = _masters_root()
    if not root.is_dir() or not _is_ours_alone(root):
        return []
    # In this order: whoever has made a door had a record by then.
    doors = list(root.glob(f"*{_DOOR}"))
    found = [record for path in sorted(root.glob("*.json")) if (record := _read_master(path))]
    pids = {str(record.pid) for record in found}
    for door in doors:
        if door.name.partition("-")[0] not in pids:
            door.unlink(missing_ok=True)
    return found


def door_for(name: str) -> Path:
    """Where a Unix socket of this ComfyUI belongs, by which it reaches a worker that dialled in.

    The path is short, as such addresses must be, in a folder that nobody else may enter; what a
    ComfyUI that was killed has left there is cleared away. Raises FleetError, OSError.
    """
    return _made_root() / f"{os.getpid()}-{name}{_DOOR}"


def _read_master(path: Path) -> MasterRecord | None:
    try:
        record = MasterRecord(**json.loads(path.read_text(encoding="utf-8")))
        if psutil.Process(record.pid).create_time() == record.started:
            return record
    except (OSError, ValueError, TypeError, psutil.Error):
        pass  # it ended, or another version wrote it
    path.unlink(missing_ok=True)
    return None


def _made_root() -> Path:
    root = _masters_root()
    root.mkdir(mode=0o700, exist_ok=True)
    if not _is_ours_alone(root):
        raise FleetError(f"{root} belongs to somebody else; have it removed.")
    return root


def _masters_root() -> Path:
    """One folder per user. Its name is no session's: see PREFIX."""
    user = os.getuid() if hasattr(os, "getuid") else "masters"
    return sessions_root() / f"comfyfleet.{user}"


def _is_ours_alone(folder: Path) -> bool:
    found = folder.lstat()
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(found.st_mode)
    mine = found.st_uid == os.getuid() and not found.st_mode & 0o077
    return mine and stat.S_ISDIR(found.st_mode)
