"""What has ended is let go of: its pictures may be all the memory that there is."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.comfy


@pytest.fixture
def master(
    values: ModuleType, comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The module comfyfleet.extension.master."""
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    monkeypatch.syspath_prepend(str(comfyui))
    importlib.import_module("utils.install_util")  # before ComfyUI's comfy.utils is in its way
    return importlib.import_module("comfyfleet.extension.master")


class Looks:
    """The prompts that run, as somebody asks who looks after them: at the second look it waits."""

    def __init__(self) -> None:
        self.second, self.go_on = threading.Event(), threading.Event()
        self.by: threading.Thread | None = None

    def __call__(self) -> set[str]:
        if self.by is None:
            self.by = threading.current_thread()
            return {"prompt"}
        self.second.set()
        self.go_on.wait(60)
        raise SystemExit  # of its thread, which has no other end

    def end(self) -> None:
        """Let that thread end."""
        self.go_on.set()
        if self.by is not None:
            self.by.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_looks_after_collections_keeps_none_that_has_ended(
    master: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held the last that it had seen, with all its results, until it saw another one."""
    looks = Looks()
    monkeypatch.setattr(master.prompts, "running_prompt_ids", looks)
    monkeypatch.setattr(master.prompts, "current_prompt_id", lambda: "prompt")
    request = master.Request(node_id="1", inputs={}, shares=2, delegate=True)
    collection: Any = master.Collection(request, {}, lambda refused: master.Plan())
    seen, owner = weakref.ref(collection), master.Master()
    owner.keep(collection)
    del collection
    try:
        assert looks.second.wait(60)
        owner.end("1")
        gc.collect()
        assert seen() is None
    finally:
        looks.end()
