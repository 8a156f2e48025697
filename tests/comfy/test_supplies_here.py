"""A node's side: what a prompt lacks in this ComfyUI, and input files that arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyfleet.errors import InputError

pytestmark = pytest.mark.comfy

DATA = b"a picture"
NAME = hashlib.sha256(DATA).hexdigest()[:40] + ".png"


@pytest.fixture
def inputs(values: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's input folder."""
    import folder_paths

    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_input_directory(before)


def take(start: int, data: bytes, *, name: str = NAME, worker: str = "w", size: int = 9) -> int:
    from comfyfleet.comfy import supplies

    return supplies.take(name, worker, size, start, data)


def fitted(prompt: dict[str, Any], *coming: str) -> tuple[dict[str, Any], list[str]]:
    from comfyfleet.comfy import supplies

    found, lacking = supplies.fitted(prompt, frozenset(coming))
    return dict(found), lacking


def load(name: str) -> dict[str, Any]:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}


def test_a_file_is_there_when_it_is_whole(inputs: Path) -> None:
    assert take(0, b"") == 0
    assert take(0, DATA[:4]) == 4 and take(0, DATA[:4]) == 4, "a piece that comes twice"
    assert not (inputs / "comfyfleet" / NAME).exists()
    assert take(4, DATA[4:]) == 9
    assert [path.name for path in (inputs / "comfyfleet").iterdir()] == [NAME]
    assert take(0, b"", worker="another") == 9


def test_an_empty_file_is_a_file(inputs: Path) -> None:
    name = hashlib.sha256(b"").hexdigest()[:40] + ".txt"
    assert take(0, b"", name=name, size=0) == 0
    assert (inputs / "comfyfleet" / name).read_bytes() == b""


@pytest.mark.parametrize("data", [b"another 9", DATA + b"more"])
def test_other_content_is_refused(inputs: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="arrived damaged"):
        take(0, data)
    assert not list((inputs / "comfyfleet").iterdir())


def test_a_folder_that_takes_nothing_is_said(inputs: Path) -> None:
    (inputs / "comfyfleet").write_text("no folder")
    with pytest.raises(InputError, match=r"an input file cannot be kept in .*comfyfleet"):
        take(0, DATA)


def test_what_is_missing_is_said_and_what_comes_is_not(inputs: Path) -> None:
    assert fitted(load("none.png"))[1] == ["'none.png' for LoadImage.image"]
    assert fitted(load("comfyfleet/x.png"), "comfyfleet/x.png")[1] == []
    (inputs / "sub").mkdir()
    (inputs / "sub" / "own.png").write_bytes(DATA)
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
