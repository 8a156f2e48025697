"""Files of workers among the owner's: in the folder, and nothing of the owner's replaced."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyfleet.errors import FleetError
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
def temp(output: Path) -> Any:
    import folder_paths

    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(output.parent / "temp"))
    (output.parent / "temp").mkdir()
    yield output.parent / "temp"
    folder_paths.set_temp_directory(before)


@pytest.fixture
def place(output: Path) -> Place:
    from comfyfleet.comfy.places import Places

    return lambda file: Places().place(file, {}).entry


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


def test_the_owners_own_link_is_followed_as_comfyui_does(place: Place, output: Path) -> None:
    elsewhere = output.parent / "disk"
    elsewhere.mkdir()
    (output / "disk").symlink_to(elsewhere)
    for number in (1, 2):
        entry = ("output", "disk", f"x_0000{number}_.png")
        assert place(file("x_00001_.png", "disk", foreign=False)) == entry
        assert (elsewhere / entry[2]).read_bytes() == b"new"
    with pytest.raises(ValueError, match="lies outside"):
        place(file("x.png", "disk/../..", foreign=False))


def test_a_full_disk_is_said_and_no_draft_is_left(
    place: Place, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("comfyfleet.comfy.places.os.replace", full)
    with pytest.raises(FleetError, match=r"other\.png.*: No space left on device\. Look at its"):
        place(file("other.png"))
    assert not list(output.iterdir())


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


def test_only_what_lies_in_the_output_folder_is_found_again(output: Path, temp: Path) -> None:
    from comfyfleet.comfy.places import Placed, Places, path_of

    for path in (output / "x.png", output / "sub" / "x.png", temp / "x.png", output.parent / "x"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    places = Places()
    for entry in (("output", "", "x.png"), ("output", "sub", "x.png")):
        file = Placed(entry, (path_of(entry).stat().st_mtime_ns, 0))
        assert places.find(str(file)) == file
    changed = (output / "x.png").stat().st_mtime_ns
    for path in (output.parent / "temp" / "x.png", output / ".." / "x", output / "none.png"):
        if path.exists():
            os.utime(path, ns=(changed, changed))
        assert places.find(f"{changed} 0 {path}") is None
    for text in (
        f"{changed} 1 {output / 'x.png'}",
        str(output / "x.png"),
        f"{changed} 0 x.png",
        "",
    ):
        assert places.find(text) is None


def test_a_nodes_own_files_are_those_that_it_was_given_a_number_for(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may name older ones too, and others may save under its name before and after it."""
    import folder_paths
    from comfy_execution.utils import CurrentNodeContext

    from comfyfleet.comfy.places import Places

    monkeypatch.setattr(folder_paths, "get_save_image_path", folder_paths.get_save_image_path)
    places = Places()
    places.watch_own_nodes()
    (output / "x_00004_.png").touch()
    for _ in range(2):  # as a node does for each item of a list
        with CurrentNodeContext("prompt", "3"):
            _, stem, number, _, _ = folder_paths.get_save_image_path("x", str(output))
        (output / f"{stem}_{number:05}_.png").touch()
    (output / "note.txt").touch()
    names = ("x_00004_.png", "x_00005_.png", "gone_00001_.png", "x_00006_.png", "note.txt")
    ui = {"images": [{"filename": name, "subfolder": "", "type": "output"} for name in names]}
    own = {1: ("output", "", "x_00005_.png"), 2: ("output", "", "x_00006_.png")}
    found = places.saved_here("prompt", "3", ui)
    assert {ordinal: file.entry for ordinal, file in found.items()} == own
    assert places.saved_here("prompt", "4", ui) == places.saved_here("next", "3", ui) == {}


@pytest.mark.parametrize("change", ["edit", "another", "link"])
def test_what_somebody_else_has_put_in_a_files_place_stays(output: Path, change: str) -> None:
    from comfyfleet.comfy.places import Places

    places = Places()
    placed = places.place(file("x_00001_.png"), {})
    path, theirs = output / "x_00001_.png", output.parent / "theirs.png"
    theirs.write_bytes(b"old")
    path.unlink()
    if change == "link":
        path.symlink_to(theirs)
    else:
        path.write_bytes(b"old" if change == "edit" else b"not")
    before = path.read_bytes()
    places.remove(placed)
    again = places.place(file("x_00001_.png"), {}, placed)
    assert path.read_bytes() == before and theirs.read_bytes() == b"old"
    assert again.entry == ("output", "", "x_00002_.png")
    assert places.place(file("x_00001_.png"), {}, again).entry == again.entry
    assert places.find(str(placed)) is None


@pytest.fixture
def book(output: Path, tmp_path: Path) -> Any:
    from comfyfleet.comfy.places import Places
    from comfyfleet.extension.queue.book import Book
    from comfyfleet.fleet.journal import Journal

    made = Book(Places())
    made.open(Journal(tmp_path / "queue.sqlite3"))
    yield made
    made.close()


def saving(book: Any, output: Path, prompt_id: str, name: str) -> Path:
    """A node of the master has saved a file."""
    from comfyfleet.comfy.places import Placed

    path = output / name
    path.write_bytes(b"new")
    placed = Placed(("output", "", name), (path.stat().st_mtime_ns, 3))
    book.replace(prompt_id, {"3/0": placed})
    return path


def asked(prompt_id: str, text: str = "") -> tuple[Any, ...]:
    return (1, prompt_id, {"3": {"class_type": "Any", "inputs": {"text": text}}}, {}, ["3"], {})


def test_what_the_master_saves_takes_the_place_of_a_workers(book: Any, output: Path) -> None:
    book.put(asked("a"))
    book.placed("a")["3/0"] = book._places.place(file("x_00001_.png"), {})
    path = saving(book, output, "a", "x_00002_.png")
    assert list(output.iterdir()) == [path]


def test_no_node_takes_away_what_its_own_attempt_has_saved(book: Any, output: Path) -> None:
    """A pack may execute a node several times, as a loop, or prompts by itself."""
    book.put(asked("a"))
    paths = {saving(book, output, each, f"{each}_{i}") for each in ("a", "packs") for i in (1, 2)}
    assert set(output.iterdir()) == paths


def test_another_prompt_of_the_same_id_takes_away_nothing(book: Any, output: Path) -> None:
    book.put(asked("a"))
    book.placed("a")["3/0"] = book._places.place(file("x_00001_.png"), {})
    book.put(asked("a"))
    assert book.placed("a")
    book.put(asked("a", "another"))
    saving(book, output, "a", "x_00002_.png")
    assert {path.name for path in output.iterdir()} == {"x_00001_.png", "x_00002_.png"}
