"""Input files that come from other machines: in pieces, and how long they stay."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyfleet.errors import FleetError, InputError

pytestmark = pytest.mark.comfy

DATA = b"a picture"
HOUR_S, DAY_S = 3600, 86400


def name_of(data: bytes, suffix: str = ".png") -> str:
    return hashlib.sha256(data).hexdigest()[:40] + suffix


NAME = name_of(DATA)


@pytest.fixture
def folder(values: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """Where input files come in, below ComfyUI's input folder."""
    import folder_paths

    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path / "comfyfleet"
    folder_paths.set_input_directory(before)


@pytest.fixture
def inputs(folder: Path) -> Any:
    return worker("w")


def worker(name: str, queued: str = "") -> Any:
    from comfyfleet.comfy.inputs import Inputs

    return Inputs(name, lambda: queued)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def aged(path: Path, seconds: float, data: bytes = DATA) -> str:
    """A file that nobody has used for so long; its name."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - seconds,) * 2)
    return path.name


def test_a_file_is_there_when_it_is_whole(inputs: Any, folder: Path) -> None:
    assert inputs.take(NAME, 9, 0, b"") == 0
    for _ in range(2):  # a piece that comes twice
        assert inputs.take(NAME, 9, 0, DATA[:4]) == 4
    assert not (folder / NAME).exists()
    assert inputs.take(NAME, 9, 4, DATA[4:]) == 9
    assert names(folder) == {NAME}
    assert worker("another").take(NAME, 9, 0, b"") == 9


def test_an_empty_file_is_a_file(inputs: Any, folder: Path) -> None:
    name = name_of(b"", ".txt")
    assert inputs.take(name, 0, 5, b"") == 0, "nonsense"
    assert inputs.take(name, 0, 0, b"") == 0
    assert (folder / name).read_bytes() == b""


@pytest.mark.parametrize("data", [b"another 9", DATA + b"more"])
def test_other_content_is_refused(inputs: Any, folder: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="arrived damaged"):
        inputs.take(NAME, 9, 0, data)
    assert not names(folder)
    assert inputs.take(NAME, 9, 0, DATA) == 9


def test_a_folder_that_takes_nothing_is_said(inputs: Any, folder: Path) -> None:
    folder.write_text("no folder")
    with pytest.raises(FleetError, match=r"an input file cannot be kept in .*comfyfleet"):
        inputs.take(NAME, 9, 0, DATA)


def test_a_disk_that_it_would_fill_is_said_before_a_byte_is_kept(inputs: Any, folder: Path) -> None:
    with pytest.raises(InputError, match=r"GB are free, and 1\.1 GB must stay so\. Make room"):
        inputs.take(NAME, 1 << 60, 0, DATA)
    assert not names(folder)


def test_the_last_piece_does_not_wait_for_the_whole_to_be_read(
    inputs: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy before us would lose its patience with a large file."""
    inputs.take(NAME, 9, 0, DATA[:4])
    read = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: read(path, {"ab": "ab"}[mode]))
    assert inputs.take(NAME, 9, 4, DATA[4:]) == 9


def test_it_goes_on_after_a_restart(inputs: Any, folder: Path) -> None:
    inputs.take(NAME, 9, 0, DATA[:4])
    again = worker("w")
    assert again.take(NAME, 9, 0, b"") == 4
    assert again.take(NAME, 9, 4, DATA[4:]) == 9


def test_a_file_that_is_cleared_away_meanwhile_comes_anew(inputs: Any, folder: Path) -> None:
    inputs.take(NAME, 9, 0, DATA[:4])
    (folder / f"{NAME}.w.part").unlink()
    assert inputs.take(NAME, 9, 4, DATA[4:]) == 0
    assert inputs.take(NAME, 9, 0, DATA) == 9


def test_a_file_that_is_being_read_holds_up_no_other(
    inputs: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs.take(NAME, 9, 0, DATA[:4])
    begun, go_on, read = threading.Event(), threading.Event(), Path.open

    def slow(path: Path, mode: str) -> Any:
        if mode == "rb":
            begun.set()
            go_on.wait(60)
        return read(path, mode)

    monkeypatch.setattr(Path, "open", slow)
    again, answers = worker("w"), []
    thread = threading.Thread(target=lambda: answers.append(again.take(NAME, 9, 0, b"")))
    thread.start()
    assert begun.wait(60)
    assert again.take(name_of(b"another"), 7, 0, b"another") == 7
    go_on.set()
    thread.join()
    assert answers == [4]


def test_what_was_broken_off_long_ago_goes(inputs: Any, folder: Path) -> None:
    old, fresh, whole = name_of(b"1"), name_of(b"2"), name_of(b"3", "")
    aged(folder / f"{old}.w.part", DAY_S + HOUR_S)
    aged(folder / f"{fresh}.other.part", DAY_S - HOUR_S)
    aged(folder / whole, 29 * DAY_S)
    aged(folder / name_of(b"4"), 31 * DAY_S)
    aged(folder / "the owner's own.png", 99 * DAY_S)
    inputs.take(NAME, 9, 0, b"")
    assert names(folder) == {f"{fresh}.other.part", whole, "the owner's own.png"}


def test_what_is_asked_for_stays_and_does_not_look_changed(inputs: Any, folder: Path) -> None:
    aged(folder / NAME, 40 * DAY_S)
    changed = (folder / NAME).stat().st_mtime_ns
    assert inputs.take(NAME, 9, 0, b"") == 9
    assert inputs.take(name_of(b"x"), 1, 0, b"x") == 1
    assert inputs.take(name_of(b"y"), 1, 0, b"") == 0
    assert (folder / NAME).stat().st_mtime_ns == changed


def test_above_the_limit_goes_what_was_used_longest_ago_and_is_not_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyfleet.comfy.keeping._KEPT_BYTES", 4 << 20)  # each counts as a MiB
    queued, recent = aged(folder / name_of(b"1"), 9 * HOUR_S), name_of(b"5")
    for number in (2, 3, 4):
        aged(folder / name_of(b"%d" % number), (8 - number) * HOUR_S)
    aged(folder / recent, HOUR_S / 2)
    worker("w", f'{{"image": "comfyfleet/{queued}"}}').take(NAME, 2 << 20, 0, b"")
    assert names(folder) == {queued, recent}
