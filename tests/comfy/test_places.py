"""Files of workers among the owner's: in the folder, and nothing of the owner's replaced."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyfleet.work import SavedFile

pytestmark = pytest.mark.comfy

Place = Callable[[SavedFile], Any]


@pytest.fixture
def output(
    values: ModuleType, comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The owner's output folder, below which lies all that may be written to."""
    monkeypatch.syspath_prepend(str(comfyui))
    importlib.import_module("utils.install_util")  # before ComfyUI's comfy.utils is in its way
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture
def place(output: Path) -> Place:
    from comfyfleet.comfy.places import Places

    return lambda file: Places().place(file, {})


def file(name: str, subfolder: str = "", *, foreign: bool = True) -> SavedFile:
    return SavedFile(kind="output", subfolder=subfolder, name=name, data=b"new", foreign=foreign)


@pytest.mark.parametrize(
    ("name", "subfolder"),
    [
        ("../x.png", ""),
        ("x.png", ".."),
        ("x.png", "/etc"),
        ("..", ""),
        (".", ""),
        ("", ""),
        ("a\\x.png", ""),
        ("a\0.png", ""),
    ],
)
def test_no_name_leads_out_of_the_folder(
    place: Place, output: Path, name: str, subfolder: str
) -> None:
    with pytest.raises(ValueError, match="lies outside"):
        place(file(name, subfolder))
    assert list(output.parent.rglob("*")) == [output]


def test_a_link_out_of_the_folder_is_not_followed(place: Place, output: Path) -> None:
    (output / "out").symlink_to("/tmp")
    with pytest.raises(ValueError, match="lies outside"):
        place(file("x.png", "out"))


def test_a_foreign_file_replaces_none(place: Place, output: Path) -> None:
    (output / "mine.png").write_bytes(b"old")
    (output / "mine_00001_.png").write_bytes(b"old")
    assert place(file("mine.png")) == ("output", "", "mine_00002_.png")
    assert place(file("mine_00001_.png")) == ("output", "", "mine_00003_.png")
    assert place(file("other.png")) == ("output", "", "other.png")
    assert (output / "mine.png").read_bytes() == (output / "mine_00001_.png").read_bytes() == b"old"


def test_a_foreign_file_does_not_go_through_a_link(place: Place, output: Path) -> None:
    victim = output.parent / "victim.png"
    victim.write_bytes(b"old")
    (output / "mine.png").symlink_to(victim)
    place(file("mine.png"))
    assert victim.read_bytes() == b"old"


def test_an_own_worker_replaces_as_a_node_here_would(place: Place, output: Path) -> None:
    (output / "latest.png").write_bytes(b"old")
    assert place(file("latest.png", foreign=False)) == ("output", "", "latest.png")
    assert (output / "latest.png").read_bytes() == b"new"
