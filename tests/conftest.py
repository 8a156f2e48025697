"""Shared by all tests: where ComfyUI is, one fleet per session, and nothing left at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent

# One thread per worker, on any machine: results are compared bit by bit between processes, and
# CPU kernels split their sums by the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """A real ComfyUI: the user's by COMFYUI_PATH, or the one of `make setup`."""
    from comfyfleet.config import find_comfyui

    return find_comfyui()


@pytest.fixture(scope="session", autouse=True)
def nothing_left() -> Iterator[None]:
    """After the last test no process of a fleet and no folder of one may remain."""
    from comfyfleet.fleet import guard
    from comfyfleet.fleet.registry import PREFIX, sessions_root

    before = set(sessions_root().glob(f"{PREFIX}*"))
    yield
    left = [
        process
        for process in psutil.process_iter()
        if _mark(process, guard.SESSION_MARK) not in (None, *map(str, before))
    ]
    assert not left, f"processes left behind: {left}"
    assert set(sessions_root().glob(f"{PREFIX}*")) <= before, "session folders left behind"


def _mark(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):
        return None


def pytest_report_header() -> str:
    return f"python {sys.version.split()[0]}, {os.cpu_count()} cores"
