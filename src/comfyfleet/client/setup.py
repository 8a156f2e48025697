"""What else than the prompt makes a picture: versions and flags, there and here."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyfleet.client.texts import plain

#: ComfyUI's flags for precision and attention; the device is shown anyway.
_PIXELS = re.compile(
    r"--(force-(fp|channels|upcast|non)|fp\d|bf16|use-.*attention|.*-upcast-attention|fast\b"
    r"|deterministic|supports-fp8|disable-xformers|cpu-vae)"
)
_VERSION = re.compile(r'__version__ = "([^"]+)"')
#: More than anybody writes.
_MAX_WORDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Versions and flags of one ComfyUI; an empty version is not known."""

    comfyui: str = ""
    torch: str = ""
    flags: frozenset[str] = frozenset()

    def differences(self, here: Setup) -> list[str]:
        """What of this one may make other pixels than ``here``."""
        pairs = {"ComfyUI": (self.comfyui, here.comfyui), "torch": (self.torch, here.torch)}
        found = [
            f"{name} {there} there, {own} here"
            for name, (there, own) in pairs.items()
            if there and own and there != own
        ]
        found += [f"{each} there" for each in sorted(self.flags - here.flags)]
        return found + [f"{each} here" for each in sorted(here.flags - self.flags)]


def own_setup(comfyui: Path, flags: Sequence[str]) -> Setup:
    """Of the ComfyUI in this folder, started with these flags and this Python."""
    try:
        found = _VERSION.search((comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    except OSError:
        found = None
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return Setup(comfyui=found[1] if found else "", torch=_number(torch), flags=_flags(flags))


def setup_of(system: Mapping[str, Any]) -> Setup:
    """Of the ComfyUI that says this of itself in /system_stats."""
    argv = system.get("argv")
    return Setup(
        comfyui=plain(system.get("comfyui_version"), 30),
        torch=_number(plain(system.get("pytorch_version"), 50)),
        flags=_flags(argv if isinstance(argv, list) else ()),
    )


def _number(torch: str) -> str:
    """Without the kind of build, which follows from the device."""
    return torch.partition("+")[0]


def _flags(words: Sequence[Any]) -> frozenset[str]:
    """Those that change pixels, without their values."""
    names = {plain(word, 60).partition("=")[0] for word in words[:_MAX_WORDS]}
    return frozenset(name for name in names if _PIXELS.match(name))
