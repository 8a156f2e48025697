"""What another machine's fleet leaves here: within its limits, on any disk."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyfleet.errors import FleetError, InputError

pytestmark = pytest.mark.comfy

KEPT = 1000


@pytest.fixture
def guests(values: ModuleType, tmp_path: Path) -> Any:
    from comfyfleet.comfy.guests import Guests

    return Guests(tmp_path / "guests", KEPT)


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "guests").iterdir())


def test_a_value_comes_in_pieces(guests: Any) -> None:
    data = os.urandom(300)
    name = name_of(data)
    assert guests.blob_start(name, 300) == 0
    assert guests.add(name, 0, 300, data[:100]) == 100
    for start in (0, 200):  # sent twice, as no answer came; or too early
        assert guests.add(name, start, 300, data[start : start + 100]) == 100
    with pytest.raises(InputError, match="0 are here; go on there"):
        guests.add(name_of(b"other"), 200, 300, data[200:])
    assert guests.add(name, 100, 300, data[100:]) == 300
    assert guests.blob_start(name, 300) == 300


def test_what_is_damaged_is_sent_again(guests: Any) -> None:
    name = name_of(b"right")
    with pytest.raises(InputError, match="arrived damaged; send it again"):
        guests.add(name, 0, 5, b"wrong")
    assert guests.blob_start(name, 5) == 0


def test_beginnings_count_too(guests: Any, tmp_path: Path) -> None:
    """Or whoever has the token could fill the disk with values that never end."""
    for number in range(50):
        guests.add(name_of(b"%d" % number), 0, KEPT, bytes(100))
        assert stored(tmp_path) <= KEPT
    assert guests.blob_start(name_of(b"49"), KEPT) == 100  # the latest are kept
    assert guests.blob_start(name_of(b"0"), KEPT) == 0


def test_one_that_is_larger_than_the_limit_is_refused(guests: Any) -> None:
    with pytest.raises(InputError):
        guests.add(name_of(b"x"), 0, KEPT + 1, b"x")


@pytest.mark.parametrize(
    "where", ["comfyfleet.comfy.guests.shutil.disk_usage", "pathlib.Path.open"]
)
def test_a_full_disk_is_a_sentence(
    guests: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    with pytest.raises(FleetError, match=r"No space left on device\. Free disk space there"):
        guests.add(name_of(b"x"), 0, 1, b"x")


def test_a_disk_that_would_be_full_loses_what_is_oldest(
    guests: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from comfyfleet.comfy import guests as module

    guests.add(name_of(b"old"), 0, KEPT, bytes(100))
    free = module._SPARE_BYTES + 50
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("comfyfleet.comfy.guests.shutil.disk_usage", lambda folder: usage)
    guests.add(name_of(b"new"), 0, KEPT, bytes(120))
    assert guests.blob_start(name_of(b"old"), KEPT) == 0
    with pytest.raises(FleetError, match="No space left"):
        guests.add(name_of(b"new"), 120, KEPT, bytes(200))
    assert guests.blob_start(name_of(b"new"), KEPT) == 120


def test_values_that_no_memory_holds_are_refused_before_they_are_read(
    guests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names a small one often enough could fill any memory."""
    name = name_of(b"x" * KEPT)
    guests.add(name, 0, KEPT, b"x" * KEPT)
    memory = type("Memory", (), {"available": 5 * KEPT})
    monkeypatch.setattr("comfyfleet.comfy.guests.psutil.virtual_memory", lambda: memory)
    with pytest.raises(FleetError, match="do not fit into the memory that is free here"):
        guests.hold("prompt", {"digest": {"skeleton": None, "buffers": [name] * 6}})
    guests.hold("prompt", {"digest": {"skeleton": None, "buffers": [name] * 5}})
    guests.forget("prompt")
