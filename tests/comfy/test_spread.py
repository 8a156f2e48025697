"""Work that is spread, as far as this process alone computes it."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.comfy


class Cancelled:
    """A job of two tasks; the user cancels when it is asked for the second, and it is told."""

    done = False

    def __init__(self) -> None:
        self._asked = 0

    def next(self) -> Any:
        from comfy.model_management import InterruptProcessingException

        from comfyfleet.extension.spread import Task

        self._asked += 1
        if self._asked == 1:
            return Task(index=0, value=0, num_bytes=0)
        time.sleep(0.2)  # the first has begun
        raise InterruptProcessingException

    def take(self, index: int, value: Any) -> None: ...


def test_a_cancel_that_the_feeder_hears_of_stops_what_is_computed_here(
    values: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    import comfy.model_management as management

    from comfyfleet.extension.spread import Spread

    def compute(value: Any) -> Any:
        for _ in range(100):
            management.throw_exception_if_processing_interrupted()
            time.sleep(0.02)

    begun = time.monotonic()
    with pytest.raises(management.InterruptProcessingException):
        Spread(Cancelled(), compute).run()
    assert time.monotonic() - begun < 1.5
    assert not management.processing_interrupted()
