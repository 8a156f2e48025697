"""Where things are and what the owner set: environment variables, and nothing read at import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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

    def read_switch(self, environ: Mapping[str, str] = os.environ) -> bool:
        """Its value as yes or no. Raises InputError for anything but 0 and 1."""
        text = self.read(environ)
        if text not in ("0", "1"):
            raise InputError(f"{self.env} is {text!r}; give 0 or 1.")
        return text == "1"

    def read_seconds(self, environ: Mapping[str, str] = os.environ) -> float:
        """Its value as a time, 0 to a day. Raises InputError."""
        text = self.read(environ)
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= 86400:
            raise InputError(f"{self.env} is {text!r}; give seconds, 0 to 86400.")
        return seconds


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
SHARE = Setting(
    env="COMFYFLEET_SHARE",
    default="0",
    help="1: workers take prompts from ComfyUI's own queue from the start. 0: not before it is "
    "switched on (`comfyfleet share on`).",
)
MASTER_COMPUTES = Setting(
    env="COMFYFLEET_MASTER",
    default="1",
    help="With a shared queue: 1: the master computes too. 0: it runs only what no worker may run.",
)
JOURNAL = Setting(
    env="COMFYFLEET_JOURNAL",
    default="1",
    help="With a shared queue: 1: queued and running prompts are kept in ComfyUI's user folder and "
    "survive a restart. 0: they are not written down.",
)
STAGGER = Setting(
    env="COMFYFLEET_STAGGER",
    default="0",
    help="Seconds between two workers that begin to load a model, for models that need much main "
    "memory while they load. 0: all load at once.",
)
BRANCHES = Setting(
    env="COMFYFLEET_BRANCHES",
    default="0",
    help="1: independent branches of a prompt that sample run on several devices at the same time, "
    "as if each had a Fleet Branch.",
)
CLUSTER = Setting(
    env="COMFYFLEET_CLUSTER",
    default="",
    help="HOST or HOST:PORT of the head of a Ray cluster, whose devices work too. RAY_ADDRESS does "
    "the same.",
)
INSECURE_CLUSTER = Setting(
    env="COMFYFLEET_INSECURE_CLUSTER",
    default="0",
    help="1: use a cluster that asks for no token, on which everybody who reaches it can run code. "
    "0: refuse it.",
)
SETTINGS = (
    COMFYUI_PATH,
    WORKERS,
    SHARE,
    MASTER_COMPUTES,
    JOURNAL,
    STAGGER,
    BRANCHES,
    CLUSTER,
    INSECURE_CLUSTER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A ComfyUI somewhere that works for this fleet, known by its address."""

    name: str
    url: str
    enabled: bool = True
    token: str = field(default="", repr=False)
    #: Certificates to trust in place of the system's (PEM).
    ca: Path | None = None


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
