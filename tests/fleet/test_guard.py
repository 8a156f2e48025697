"""The guard with real processes: it ends those that carry the mark, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from comfyfleet.fleet import guard
from tests.support import wait_until

SLEEPER = "import time; time.sleep(600)"
#: Starts a further process out of its own group, names it, and stays.
PARENT = (
    "import subprocess, sys, time; "
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True); "
    "print(child.pid, flush=True); time.sleep(600)"
)

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session's folder with something in it."""
    folder = tmp_path / "session"
    (folder / "cpu-0").mkdir(parents=True)
    (folder / "cpu-0" / "comfyui.log").write_text("hello")
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python processes with a mark; all are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(mark: Path | None, code: str = SLEEPER) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != guard.SESSION_MARK}
        if mark is not None:
            environment[guard.SESSION_MARK] = str(mark)
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        # It is there before anybody can read its environment, on a busy machine by far.
        wait_until(psutil.Process(process.pid).environ, "its environment")
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def run_guard(session: Path) -> None:
    """Run the guard as its owner does, with an owner that has just ended."""
    command = [sys.executable, guard.__file__, str(session)]
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_marked_processes_are_killed_and_the_folder_removed(session: Path, start: Start) -> None:
    marked = [start(session), start(session)]
    run_guard(session)
    assert [process.wait(60) for process in marked] == [-9, -9]
    assert not session.exists() and session.parent.exists()


def test_children_go_too_although_they_left_the_group(session: Path, start: Start) -> None:
    parent = start(session, PARENT)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    run_guard(session)
    assert parent.wait(60) == -9
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_all_others_stay(session: Path, start: Start, tmp_path: Path) -> None:
    other = tmp_path / "session2"
    other.mkdir()
    strangers = [start(other), start(session / "cpu-0"), start(None)]
    marked = start(session)
    run_guard(session)
    assert marked.wait(60) == -9
    assert [process.poll() for process in strangers] == [None] * 3
    assert other.is_dir()


def test_members_are_those_with_this_mark(session: Path, start: Start, tmp_path: Path) -> None:
    ours = [start(session), start(session)]
    start(tmp_path / "another")
    assert {p.pid for p in guard.members(str(session))} == {p.pid for p in ours}


def test_a_session_without_folder_or_processes_is_no_error(tmp_path: Path) -> None:
    run_guard(tmp_path / "none")


def test_it_waits_for_the_owners_end(session: Path, start: Start) -> None:
    marked = start(session)
    command = [sys.executable, guard.__file__, str(session)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"what the owner says is no end")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert marked.poll() is None and session.exists()
        process.stdin.close()
        assert process.wait(60) == 0
    assert marked.wait(60) == -9 and not session.exists()
