"""Workflows of ComfyUI-Distributed hold the values of widgets as a list, without names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
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
#: The distributed nodes of its public workflow files, as they are in these.
FILES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent.parent / "data" / "workflows" / "peer_upscale.json").read_text()
)

SOCKETS = {"IMAGE", "MODEL", "CONDITIONING", "VAE"}
#: One of the files needs the samplers of another pack.
OF_RES4LYF = {"sampler_name": "res_2s", "scheduler": "bong_tangent"}
#: One of them is from before the last widget.
NUM_VALUES = {"distributed-upscale.json": 14, "distributed-upscale-video.json": 13}
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
                found.append(
                    ("control_after_generate", ("COMBO", {"options": ["fixed", "randomize"]}))
                )
    return found


def test_the_old_upscaler_has_its_widgets_in_the_old_order(
    inputs: dict[str, tuple[Any, ...]],
) -> None:
    """The page gives saved values to widgets by their place: one more would move all others."""
    assert [name for name, _ in widgets(inputs)] == OLD_ORDER


@pytest.mark.parametrize("file", FILES)
def test_the_public_workflows_open_with_all_values_in_their_places(
    inputs: dict[str, tuple[Any, ...]], file: str
) -> None:
    """A widget would refuse, or silently bound, what is of another type or out of its range."""
    [node] = FILES[file]
    assert node["type"] == "UltimateSDUpscaleDistributed"
    values = node["widgets_values"]
    assert len(values) == NUM_VALUES[file]
    # A page writes 7.0 as 7; what is left out at the end keeps its default.
    types = {"INT": {int}, "FLOAT": {float, int}, "BOOLEAN": {bool}, "COMBO": {str}}
    told = widgets(inputs)[: len(values)]
    for (name, (kind, options, *_)), value in zip(told, values, strict=True):
        assert type(value) in types[kind], name
        if kind == "COMBO":
            assert value in (*options["options"], OF_RES4LYF.get(name)), name
        elif kind != "BOOLEAN":
            assert options["min"] <= value <= options["max"], name


@pytest.mark.parametrize("file", FILES)
def test_the_links_of_the_public_workflows_end_at_our_inputs(
    inputs: dict[str, tuple[Any, ...]], file: str
) -> None:
    [node] = FILES[file]
    linked = {each["name"]: each["type"] for each in node["inputs"] if each["link"] is not None}
    assert linked == {name: given[0] for name, given in inputs.items() if given[0] in SOCKETS}


def test_a_workflow_from_before_the_last_widget_opens_with_its_default(
    inputs: dict[str, tuple[Any, ...]],
) -> None:
    """Some versions of the old node have no static_distribution: it must be last, and optional."""
    name, (kind, options, *_) = widgets(inputs)[-1]
    assert (name, kind, options["default"]) == ("static_distribution", "BOOLEAN", False)
