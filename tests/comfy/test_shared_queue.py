"""The order in which prompts are taken out of the shared queue."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.comfy

#: Numbers and ids, in the order of put: at the front, of equal numbers, two of one id, in a row.
ORDERS = {
    "as they come": [(1, "a"), (2, "b"), (3, "c")],
    "one at the front": [(1, "a"), (2, "b"), (-3, "c")],
    "equal numbers": [(1, "c"), (1, "a"), (1, "b")],
    "two of one id": [(1, "b"), (2, "a"), (3, "b")],
    "two of one id, the second at the front": [(1, "b"), (2, "a"), (-3, "b")],
    "three of one id": [(2, "b"), (1, "b"), (-3, "b"), (0, "a")],
}


@pytest.fixture
def queues(values: ModuleType, comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module comfyfleet.comfy.queue."""
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    monkeypatch.syspath_prepend(str(comfyui))
    importlib.import_module("utils.install_util")  # before ComfyUI's comfy.utils is in its way
    return importlib.import_module("comfyfleet.comfy.queue")


def taken(queue: Any, how: str, order: list[tuple[float, str]]) -> list[int]:
    """Which of the prompts, by their order of put, is taken when: each ends before the next."""
    for place, (number, prompt_id) in enumerate(order):
        queue.put((number, prompt_id, {"1": {"place": place}}, {}, [], {}))
    found = []
    for _ in order:
        if how == "elsewhere":  # by whoever is told of the first
            item, item_id = queue.take(min(item[:2] for item in queue.queue)[1])
        else:
            item, item_id = queue.get(timeout=0)
        found.append(item[2]["1"]["place"])
        queue.task_done(item_id, {"outputs": {}, "meta": {}}, None)
    return found


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_order_is_the_same_whether_it_is_shared_or_not(
    queues: ModuleType, order: list[tuple[float, str]]
) -> None:
    own = MagicMock(**{"is_shared.return_value": False})
    found = {}
    for how, desk in (("unshared", None), ("by the master", own), ("elsewhere", own)):
        recorder = MagicMock()
        queue = queues.SharedQueue(MagicMock(), recorder)
        queue.share(desk)
        found[how] = taken(queue, how, order)
        # What runs is what was written down last under that id.
        told = [call for call in recorder.mock_calls if call[0] in ("put", "start")]
        written: dict[str, int] = {}
        begun = []
        for name, (given,), _ in told:
            if name == "put":
                written[given[1]] = given[2]["1"]["place"]
            else:
                begun.append(written[given])
        assert begun == found[how]
    assert all(a == b for a, b in itertools.pairwise(found.values()))
    assert sorted(found["unshared"]) == list(range(len(order)))
