"""Shared by all tests: where things are, and nothing left behind at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def nothing_left() -> Iterator[None]:
    """After the last test no process and no folder of a fleet may remain."""
    from comfyfleet.fleet.registry import PREFIX, sessions_root
    from tests.support import marked_processes

    before = {str(path) for path in sessions_root().glob(f"{PREFIX}*")}
    yield
    processes = [process for process, session in marked_processes() if session not in before]
    assert not processes, f"processes left behind: {processes}"
    folders = {str(path) for path in sessions_root().glob(f"{PREFIX}*")} - before
    assert not folders, f"session folders left behind: {folders}"
