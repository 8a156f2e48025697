"""Shared by all tests: where things are, and nothing left behind at the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# One thread per worker, on any machine: results are compared bit by bit between processes, and
# CPU kernels split their sums by the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell lets what it starts in the background ignore Ctrl-C, and all that is started there; tests
# end a ComfyUI by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing: other tests run at the same time.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_collection_finish() -> None:
    """Ray reads its settings at import, so a fleet refuses one that somebody else has loaded."""
    if "ray" in sys.modules:
        raise pytest.UsageError("a test module imports Ray, or what does, at its top")


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
    with suppress(AssertionError):  # a guard ends those of a fleet whose owner was killed
        wait_until(lambda: not marked_processes(), "their end")
    assert not marked_processes(), f"processes left behind: {marked_processes()}"

    def abandoned() -> set[str]:
        """New folders that no living fleet, of these tests or of anybody, uses."""
        folders = {str(path) for path in sessions_root().glob(f"{PREFIX}*")} - before
        return folders - {session for _, session in marked_processes(ours=False)}

    wait_until(lambda: not abandoned(), "session folders to be removed")
