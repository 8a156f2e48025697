"""Changes of fleet.yaml: one writer at a time, checked before they are saved, saved as a whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from comfyfleet.config import document
from comfyfleet.config.schema import Document, worker_entry
from comfyfleet.config.settings import BY_KEY, Setting
from comfyfleet.errors import ComfyFleetError, InputError

#: A change takes milliseconds; who holds the lock for so long hangs.
_LOCK_TIMEOUT_S = 30.0


def edit(path: Path, change: Callable[[CommentedMap], None]) -> Document:
    """Read the file, change it and save it, with its comments; what it says then.

    Others who do so at the same time wait, and readers see the old file or the new one. Raises
    InputError, and leaves the file as it was, if ``change`` does or if the result would be wrong;
    ComfyFleetError if it cannot be written.
    """
    target = path.resolve()  # a link stays a link
    with _told(path), _locked(target):
        before = document.read_text(path)
        data = document.parse(before, path)
        change(data)
        text = document.render(data, before)
        found = document.validate(document.parse(text, path), path)
        if text != before:
            _replace(target, text)
    return found


def set_setting(path: Path, key: str, value: Any) -> Document:
    """Set a setting to a value of its type, or to what a text means. Raises InputError."""
    setting = setting_of(key)
    if isinstance(value, str):
        value = setting.parse(value, key)

    def change(data: CommentedMap) -> None:
        room(data, "settings", CommentedMap)[key] = value

    return edit(path, change)


def unset_setting(path: Path, key: str) -> Document:
    """Take a setting out of the file, so that its default holds. Raises InputError."""
    setting_of(key)

    def change(data: CommentedMap) -> None:
        settings = room(data, "settings", CommentedMap)
        settings.pop(key, None)
        if not settings:
            del data["settings"]

    return edit(path, change)


def add_worker(path: Path, entry: Mapping[str, Any]) -> Document:
    """Add a worker on the network: the keys of a ``WorkerEntry``. Raises InputError."""
    return edit(path, lambda data: append_worker(data, entry))


def append_worker(data: CommentedMap, entry: Mapping[str, Any]) -> None:
    """``add_worker`` as a part of a change."""
    worker = worker_entry({key: value for key, value in entry.items() if value is not None})
    given = worker.model_dump(exclude_defaults=True)
    room(data, "workers", CommentedSeq).append(CommentedMap(given))


def remove_worker(path: Path, name: str) -> Document:
    """Take a worker out of the file. Raises InputError if there is none of that name."""

    def change(data: CommentedMap) -> None:
        workers = room(data, "workers", CommentedSeq)
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in workers]
        if name not in names:
            known = ", ".join(str(each) for each in names if each) or "none"
            raise InputError(f"{path} has no worker {name!r}; it has {known}.")
        del workers[names.index(name)]
        if not workers:
            del data["workers"]

    return edit(path, change)


def setting_of(key: str) -> Setting[Any]:
    """The setting of a key of fleet.yaml. Raises InputError."""
    if key not in BY_KEY:
        raise InputError(f"no setting is called {key!r}; choose one of {', '.join(BY_KEY)}.")
    return BY_KEY[key]


def room(data: CommentedMap, key: str, kind: type[Any]) -> Any:
    """The value of a key of the file, made if it has none. Raises InputError for another kind."""
    if data.get(key) is None:
        data[key] = kind()
    if not isinstance(data[key], kind):
        raise InputError(f"{key} is of the wrong form; correct the file by hand first.")
    return data[key]


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ComfyFleetError(
            f"{path} cannot be written: {error.strerror}. It is as it was; make room or give the "
            "folder to this user."
        ) from error


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f"{target.name}.lock")
    try:
        with FileLock(lock, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise ComfyFleetError(
            f"another process has been writing {target} for {_LOCK_TIMEOUT_S:.0f} s. Look for it, "
            "and try again."
        ) from None


def _replace(target: Path, text: str) -> None:
    """Put a new file in the place of the old one: whole, and on the disk."""
    number, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if target.exists():
                os.chmod(draft, target.stat().st_mode & 0o777)
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows opens no folders, and orders such changes itself
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
