"""The model folders of this ComfyUI: what lies there, and where more may be put."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import folder_paths

from comfyfleet.api.models import SUFFIXES
from comfyfleet.client.models import ModelFile
from comfyfleet.client.names import is_plain
from comfyfleet.errors import InputError


def listed() -> list[ModelFile]:
    """All models whose format can be copied; a file that several folders have, once. Slow."""
    found: dict[Path, ModelFile] = {}
    for folder in list(folder_paths.folder_names_and_paths):
        for model in _in_folder(folder):
            found.setdefault(model.path.resolve(), model)
    return list(found.values())


def find(name: str, folder: str | None) -> ModelFile:
    """The model of that name. Slow. Raises InputError if there is none, or if there are several."""
    if folder is not None:
        _check_folder(folder, name)
    candidates = listed() if folder is None else _in_folder(folder)
    found = [each for each in candidates if each.name == name]
    if not found:
        where = f"model folder {folder!r}" if folder else "model folder"
        raise InputError(
            f"no {where} here has {name!r}; see `comfyfleet models check`, and name a worker that "
            "has it by --from."
        )
    if len(found) > 1:
        folders = ", ".join(each.folder for each in found)
        raise InputError(f"{name!r} is in several model folders ({folders}); choose by --folder.")
    return found[0]


def destination(folder: str, name: str) -> Path:
    """Where a new file of that folder belongs. Raises InputError if it may not be there.

    ``name`` is of the form that ``api.models`` allows.
    """
    base = _check_folder(folder, name)
    if not all(map(is_plain, name.split("/"))):
        raise InputError(f"{name!r} is no name of a file on every system; give another name.")
    path = base / name
    if not path.resolve().is_relative_to(base.resolve()):
        raise InputError(f"{name!r} leads out of the model folder {folder!r}; give another name.")
    return path


def refresh() -> None:
    """Let ComfyUI look again at what lies in its folders."""
    folder_paths.filename_list_cache.clear()


def _check_folder(folder: str, name: str) -> Path:
    """Its default place. Only a folder that lists such files is one of models."""
    known = folder_paths.folder_names_and_paths.get(folder_paths.map_legacy(folder))
    paths, suffixes = known if known else ((), ())
    if not paths or Path(name).suffix not in suffixes:
        able = sorted(
            each
            for each, (_, allowed) in folder_paths.folder_names_and_paths.items()
            if Path(name).suffix in allowed
        )
        raise InputError(
            f"{folder!r} is no model folder for {Path(name).suffix} files of this ComfyUI; choose "
            f"one of {', '.join(able) or 'those of a pack that loads them'}."
        )
    existing = [path for path in paths if Path(path).is_dir()]
    return Path((existing or paths)[0])


def _in_folder(folder: str) -> Iterator[ModelFile]:
    _, suffixes = folder_paths.folder_names_and_paths[folder_paths.map_legacy(folder)]
    if not any(each in suffixes for each in SUFFIXES):
        return
    for name in folder_paths.get_filename_list(folder):
        path = folder_paths.get_full_path(folder, name)
        if name.endswith(SUFFIXES) and path is not None:
            yield ModelFile(folder=folder, name=name.replace("\\", "/"), path=Path(path))
