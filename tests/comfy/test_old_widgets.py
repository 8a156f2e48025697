"""Workflows of ComfyUI-Distributed hold the values of widgets as a list, without names."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.comfy

#: The widgets of the old node in the order of its workflow files. The page of ComfyUI puts the
#: second one behind a seed that has it.
OLD_ORDER = [
    "seed",
    "control_after_generate",
    "steps",
    "cfg",
    "sampler_name",
    "scheduler",
    "denoise",
    "tile_width",
    "tile_height",
    "padding",
    "mask_blur",
    "force_uniform_tiles",
    "tiled_decode",
    "static_distribution",
]
SAVED = [7, "fixed", 20, 6.5, "euler", "normal", 0.3, 512, 768, 32, 8, True, False, True]

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture
def inputs(values: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The inputs of our node of that name, as ComfyUI tells them to its page."""
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())
    from comfyfleet.extension.nodes.legacy import UltimateSDUpscaleDistributed

    told = UltimateSDUpscaleDistributed.INPUT_TYPES()
    return {**told["required"], **told.get("optional", {})}


def widgets(inputs: dict[str, tuple[Any, ...]]) -> list[tuple[str, tuple[Any, ...]]]:
    """Name and input of each widget, in the order in which the page makes them."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    for name, given in inputs.items():
        if given[0] in WIDGETS or isinstance(given[0], list):
            found.append((name, given))
            if len(given) > 1 and given[1].get("control_after_generate"):
                found.append(("control_after_generate", ("COMBO", {"options": ["fixed"]})))
    return found


def test_the_old_upscaler_has_its_widgets_in_the_old_order(
    inputs: dict[str, tuple[Any, ...]],
) -> None:
    """The page gives saved values to widgets by their place: one more would move all others."""
    assert [name for name, _ in widgets(inputs)] == OLD_ORDER


def test_values_of_an_old_workflow_fit_the_widgets_that_get_them(
    inputs: dict[str, tuple[Any, ...]],
) -> None:
    """A widget would refuse, or silently bound, what is of another type or out of its range."""
    types = {"INT": int, "FLOAT": float, "BOOLEAN": bool, "COMBO": str}
    for (name, (kind, options, *_)), value in zip(widgets(inputs), SAVED, strict=True):
        assert type(value) is types[kind], name
        if kind == "COMBO":
            assert value in options["options"], name
        elif kind != "BOOLEAN":
            assert options["min"] <= value <= options["max"], name


def test_a_workflow_from_before_the_last_widget_opens_with_its_default(
    inputs: dict[str, tuple[Any, ...]],
) -> None:
    """Some versions of the old node have no static_distribution: it must be last, and optional."""
    name, (kind, options, *_) = widgets(inputs)[-1]
    assert (name, kind, options["default"]) == ("static_distribution", "BOOLEAN", False)
