"""What runs on this machine: each fleet leaves a record in its folder while it lives."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from comfyfleet.work import WorkerInfo

#: Prefix of a session's folder, and the record's name in it.
PREFIX = "comfyfleet-"
_RECORD = "session.json"


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
