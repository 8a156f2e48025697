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
    from tests.support import marked_processes, wait_until

    before = {str(path) for path in sessions_root().glob(f"{PREFIX}*")}
    yield
    assert not marked_processes(), f"processes left behind: {marked_processes()}"

    def abandoned() -> set[str]:
        """New folders that no living fleet, of these tests or of anybody, uses."""
        folders = {str(path) for path in sessions_root().glob(f"{PREFIX}*")} - before
        return folders - {session for _, session in marked_processes(ours=False)}

    wait_until(lambda: not abandoned(), "session folders to be removed", 20)
