"""How many pictures of a stream are on their way at once."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.comfy


class Sheet:
    """A picture of tiles of which each waits for the one before it."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.left = 2
        self._out = 0

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def num_ready(self) -> int:
        return int(self.left > 0 and not self._out)

    def next(self) -> tuple[int, Any]:
        self._out = 1
        return 0, 0

    def take(self, number: int, result: Any) -> None:
        self._out, self.left = 0, self.left - 1


@pytest.mark.parametrize(("num_bytes", "at_once"), [(1 << 20, 6), (1 << 30, 2), (8 << 30, 1)])
def test_no_more_are_open_than_fit_in_memory(
    num_bytes: int, at_once: int, values: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment of a video of 4K is 8 GB."""
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    from comfyfleet.extension.spread.sheets import Stream

    finished: list[Any] = []
    stream = Stream((Sheet(num_bytes) for _ in range(9)), finished.append, max_open=6)
    most = 0
    while not stream.done:
        tasks = []
        while (task := stream.next()) is not None:
            tasks.append(task)
        most = max(most, len(tasks))
        for task in tasks:
            stream.take(task.index, [None])
    assert most == at_once and len(finished) == 9
