"""A node's side: what a prompt lacks in this ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.comfy


@pytest.fixture
def inputs(values: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's input folder."""
    import folder_paths

    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_input_directory(before)


def fitted(prompt: dict[str, Any], *coming: str) -> tuple[dict[str, Any], list[str]]:
    from comfyfleet.comfy import supplies

    found, lacking = supplies.fitted(prompt, frozenset(coming))
    return dict(found), [str(each) for each in lacking]


def load(name: str) -> dict[str, Any]:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}


def test_what_is_missing_is_said_and_what_comes_is_not(inputs: Path) -> None:
    assert fitted(load("none.png"))[1] == ["'none.png' for LoadImage.image"]
    assert fitted(load("comfyfleet/x.png"), "comfyfleet/x.png")[1] == []
    (inputs / "sub").mkdir()
    (inputs / "sub" / "own.png").write_bytes(b"a picture")
    assert fitted(load("sub/own.png"))[1] == [], "it lies here, though no list has it"
    assert fitted({"1": {"class_type": "Odd", "inputs": {}}})[1] == ["node class Odd"]


def test_a_node_that_looks_at_its_choice_itself_is_left_to_do_so(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs fill lists in the browser, and take what is not in them."""
    import nodes

    class Strict:
        @classmethod
        def INPUT_TYPES(cls) -> Any:
            return {"required": {"style": (["a", "b"],)}}

    class Lenient(Strict):
        @classmethod
        def VALIDATE_INPUTS(cls, style: str) -> bool:
            return True

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Strict", Strict)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Lenient", Lenient)
    node = {"inputs": {"style": "mine"}}
    assert fitted({"1": {**node, "class_type": "Lenient"}})[1] == []
    assert fitted({"1": {**node, "class_type": "Strict"}})[1] == ["'mine' for Strict.style"]


def test_models_larger_than_all_memory_are_said(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyfleet.comfy import supplies

    monkeypatch.setattr(supplies, "weights_bytes", lambda prompt, folders: 1 << 60)
    (lack,) = fitted(load("x.png"), "x.png")[1]
    assert lack.startswith("memory for models of 1152921504.6 GB (it has ")
