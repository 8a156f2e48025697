"""Where things are and what the owner set: environment variables, and nothing read at import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyfleet.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its environment variable, its default and what it does."""

    env: str
    default: str
    help: str

    def read(self, environ: Mapping[str, str] = os.environ) -> str:
        return environ.get(self.env, "").strip() or self.default


COMFYUI_PATH = Setting(
    env="COMFYUI_PATH",
    default="",
    help="The ComfyUI to run: a folder with main.py. Default: the one that ComfyFleet is installed "
    "in, or the one that `make setup` put into .cache/.",
)
WORKERS = Setting(
    env="COMFYFLEET_WORKERS",
    default="auto",
    help="Devices that get a worker: auto (every accelerator but the master's own), a number, or "
    "a list such as cuda:1,cuda:2 or cpu,cpu. 0 starts none.",
)
BRANCHES = Setting(
    env="COMFYFLEET_BRANCHES",
    default="0",
    help="1: independent branches of a prompt that sample run on several devices at the same time, "
    "as if each had a Fleet Branch.",
)
SETTINGS = (COMFYUI_PATH, WORKERS, BRANCHES)

#: Set inside worker processes: there a collector passes its own input on and starts no fleet.
WORKER_MARK = "COMFYFLEET_WORKER"


def is_worker() -> bool:
    """True inside a worker process of a fleet."""
    return bool(os.environ.get(WORKER_MARK))


def pack_dir() -> Path:
    """The folder that ComfyUI opens as a custom node: the checkout, or ``_pack`` in a wheel."""
    package = Path(__file__).resolve().parent
    bundled = package / "_pack"
    return bundled if bundled.is_dir() else package.parent.parent


def demo_dir() -> Path:
    """The folder with the demo model's weights and workflow."""
    return pack_dir() / "demo"


def find_comfyui(given: str | None = None) -> Path:
    """The ComfyUI folder to run; ``given`` wins over COMFYUI_PATH, which wins over what is near.

    Raises InputError if a named folder is no ComfyUI, or if none is found.
    """
    named = given or COMFYUI_PATH.read()
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
