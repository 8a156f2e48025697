"""Which files in a worker's folders are results of the prompt that runs."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support import wait_until

pytestmark = pytest.mark.comfy


@pytest.fixture
def output(
    values: ModuleType, comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(comfyui))
    importlib.import_module("utils.install_util")  # before ComfyUI's comfy.utils is in its way
    import folder_paths

    before, folder = folder_paths.get_output_directory(), tmp_path / "output"
    folder.mkdir()
    folder_paths.set_output_directory(str(folder))
    yield folder
    folder_paths.set_output_directory(before)


@pytest.fixture
def shelf(output: Path) -> Any:
    from comfyfleet.comfy.mirror import Shelf

    return Shelf()


def write(path: Path) -> None:
    """A file, and the clock that dates files, read once per tick, has gone on before and since."""
    probe = path.with_suffix(".probe")
    _pass_time(probe)
    path.write_bytes(b"picture")
    _pass_time(probe)
    probe.unlink()


def _pass_time(probe: Path) -> None:
    now = time.time_ns()

    def is_dated_later() -> bool:
        probe.write_bytes(b"")
        return probe.stat().st_ctime_ns > now

    wait_until(is_dated_later, "the clock of files goes on")


def names(files: tuple[Any, ...]) -> list[str]:
    return [file.name for file in files]


def ui(*filenames: str) -> dict[str, Any]:
    entries = [{"filename": name, "subfolder": "", "type": "output"} for name in filenames]
    return {"images": entries}


def test_what_a_node_saved_and_did_not_name_is_told_once(shelf: Any, output: Path) -> None:
    (output / "a.png").write_bytes(b"a")
    assert names(shelf.named(ui("a.png"))) == ["a.png"]
    (output / "b.png").write_bytes(b"b")
    assert names(shelf.unnamed()) == ["b.png"]
    assert shelf.unnamed() == ()


def test_what_lay_there_before_is_no_result(output: Path) -> None:
    from comfyfleet.comfy.mirror import Shelf

    write(output / "old.png")
    assert Shelf().unnamed() == ()


def test_what_was_gone_with_its_disk_is_no_result_of_a_later_prompt(
    shelf: Any, output: Path
) -> None:
    write(output / "a.png")
    away = output.rename(output.with_name("away"))
    shelf.named(ui("a.png"))
    assert shelf.missing == ["a.png"] and shelf.unnamed() == ()
    shelf.write_off()
    away.rename(output)
    write(output / "b.png")
    assert names(shelf.unnamed()) == ["b.png"]
