"""Logs that are put aside while somebody writes them, and while somebody reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyfleet.errors import FleetError
from comfyfleet.fleet.logs import Follower, rotate, rotate_open, tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "cpu-0.log"


@pytest.fixture
def writer(log: Path) -> Iterator[int]:
    """The log as a worker has it open."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    yield descriptor
    os.close(descriptor)


def contents(log: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in log.parent.iterdir()}


def test_three_old_logs_are_kept(log: Path) -> None:
    for text in ("one", "two", "three", "four", "five"):
        log.write_text(text)
        rotate(log, max_bytes=2)
    assert contents(log) == {"cpu-0.log.1": "five", "cpu-0.log.2": "four", "cpu-0.log.3": "three"}


def test_a_small_log_stays(log: Path) -> None:
    log.write_text("ab")
    rotate(log, max_bytes=2)
    rotate_open(log, max_bytes=2)
    assert contents(log) == {"cpu-0.log": "ab"}


def test_there_may_be_none(log: Path) -> None:
    rotate(log)
    rotate_open(log)
    assert contents(log) == {}


def test_a_worker_writes_on_into_the_emptied_log(log: Path, writer: int) -> None:
    os.write(writer, b"before")
    rotate_open(log, max_bytes=2)
    os.write(writer, b"after")
    assert contents(log) == {"cpu-0.log": "after", "cpu-0.log.1": "before"}
    modes = {path.stat().st_mode & 0o777 for path in log.parent.iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize("lines", [1, 3, 5000, 10_000])
def test_the_last_lines(log: Path, lines: int) -> None:
    every = [f"line {number} {'ü' * (number % 90)}" for number in range(6000)]
    log.write_text("\n".join(every) + "\n", encoding="utf-8")
    assert tail(log, lines) == every[-lines:]


def test_a_log_of_anything_can_be_read(log: Path) -> None:
    log.write_bytes(b"\xff\xfe no text\r\nlast")
    assert tail(log, 1) == ["last"]
    log.write_bytes(b"")
    assert tail(log, 1) == []


def test_no_log_is_an_error(log: Path) -> None:
    with pytest.raises(FleetError, match=r"cpu-0\.log cannot be read"):
        tail(log, 1)


def test_a_reader_sees_each_byte_once_over_rotations(log: Path, writer: int) -> None:
    os.write(writer, b"first\nsecond\n")
    follower = Follower(log)
    assert follower.begin(1) == ["second"]
    assert follower.read() == ""
    os.write(writer, b"third\n")
    assert follower.read() == "third\n"
    rotate_open(log, max_bytes=2)
    os.write(writer, b"new\n")
    assert follower.read() == "new\n"
    rotate(log, max_bytes=2)
    assert follower.read() == ""
    log.write_text("a new process's log, which is longer\n")
    assert follower.read() == "a new process's log, which is longer\n"
