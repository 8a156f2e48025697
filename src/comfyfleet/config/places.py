"""Where things are: the ComfyUI to run, the pack, and whether this process is a worker."""

from __future__ import annotations

import os
from pathlib import Path

from comfyfleet.config.settings import COMFYUI_PATH
from comfyfleet.errors import InputError

#: Set inside worker processes: there a collector passes its own input on and starts no fleet.
WORKER_MARK = "COMFYFLEET_WORKER"


def is_worker() -> bool:
    """True inside a worker process of a fleet."""
    return bool(os.environ.get(WORKER_MARK))


def pack_dir() -> Path:
    """The folder that ComfyUI opens as a custom node: the checkout, or ``_pack`` in a wheel."""
    package = Path(__file__).resolve().parent.parent
    bundled = package / "_pack"
    return bundled if bundled.is_dir() else package.parent.parent


def demo_dir() -> Path:
    """The folder with the demo model's weights and workflow."""
    return pack_dir() / "demo"


def find_comfyui(given: str | None = None) -> Path:
    """The ComfyUI folder to run; ``given`` wins over COMFYUI_PATH, which wins over what is near.

    Raises InputError if a named folder is no ComfyUI, or if none is found.
    """
    named = given or os.environ.get(COMFYUI_PATH.env, "").strip()
    if named:
        return _checked(Path(named).expanduser().resolve(), named)
    pack = pack_dir()
    for near in (*_hosts(pack), pack / ".cache" / "ComfyUI"):
        if _is_comfyui(near):
            return near
    raise InputError(
        "no ComfyUI found. Set COMFYUI_PATH (or --comfyui) to the folder that holds its main.py, "
        "or run `make setup` in a checkout of ComfyFleet, which gets one for tests and the demo."
    )


def _hosts(pack: Path) -> list[Path]:
    return [pack.parent.parent] if pack.parent.name == "custom_nodes" else []


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _checked(folder: Path, named: str) -> Path:
    if not _is_comfyui(folder):
        raise InputError(
            f"{named!r} is no ComfyUI: it needs main.py and the folder comfy. Give the folder that "
            "you start ComfyUI from."
        )
    return folder
