"""Who answers at an address: which ComfyUI, on what device, and what its owner should know."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from comfyfleet.client.link import Link
from comfyfleet.client.setup import Setup, setup_of
from comfyfleet.client.texts import plain, size
from comfyfleet.errors import InputError, Unreachable

#: The oldest ComfyUI whose routes do what is asked of them here.
OLDEST = (0, 3, 75)
#: What a proxy answers that does not reach its ComfyUI.
_PASSED_ON = (502, 503, 504)
#: An owner whose clock is further off may wonder about times in logs and files.
_MAX_CLOCK_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a ComfyUI says of itself; another one if it is started anew with other things."""

    version: str
    device: str
    device_name: str
    has_extension: bool
    setup: Setup
    classes: frozenset[str] = field(repr=False)
    #: What its owner should know; nothing that forbids to use it.
    note: str = field(compare=False)


async def ask_stats(link: Link) -> dict[str, Any]:
    """What a ComfyUI says of its system and its devices.

    Raises Unreachable if there is none, InputError if it is too old or does not let us in.
    """
    status, stats = await link.ask("GET", "/system_stats")
    if status in (401, 403):
        raise InputError(f"{link.url} does not let us in ({status}); give its token.")
    if status in _PASSED_ON:
        told = f"a proxy answers ({status}), and not the ComfyUI behind it; is that running?"
        raise Unreachable(link.url, told)
    if status != 200 or not isinstance(stats, dict) or not isinstance(stats.get("system"), dict):
        raise Unreachable(link.url, f"it answers ({status}), but not as a ComfyUI does; check it")
    if old := too_old(link.url, _version_of(stats)):
        raise InputError(old)
    return stats


def too_old(where: str, version: str) -> str:
    """What is said of a ComfyUI of this version; empty if it is new enough."""
    if _number(version) >= OLDEST:
        return ""
    needed = ".".join(map(str, OLDEST))
    return f"{where} is ComfyUI {version or 'of old'}; {needed} is needed: update."


async def clock_off_by(link: Link) -> float:
    """Seconds by which its clock is ahead of ours, as far as it says."""
    async with link.request("HEAD", "/system_stats") as response:
        date = response.headers.get("Date", "")
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def clock_note(off_by_s: float) -> str:
    """What is said of a worker whose clock is so far ahead of ours; empty if it is near."""
    if abs(off_by_s) <= _MAX_CLOCK_S:
        return ""
    return f"its clock is off by {off_by_s:.0f} s; set it, for certificates and logs"


def memory_of(stats: Mapping[str, Any]) -> int:
    """Bytes of its memory, and of its device's where that has some of its own."""
    device = first_device(stats)
    shared = device.get("type") in ("cpu", "mps")
    return size(stats["system"].get("ram_total")) + (
        0 if shared else size(device.get("vram_total"))
    )


def greeting(
    stats: Mapping[str, Any],
    hello: Mapping[str, Any] | None,
    classes: frozenset[str],
    off_by_s: float,
    own: Setup,
) -> Greeting:
    """``hello``: what its extension says, None without one; ``classes``: its node classes.

    ``off_by_s``: by how many seconds its clock is ahead; ``own``: the owner's ComfyUI.
    """
    device, setup = first_device(stats), setup_of(stats["system"])
    notes = [] if hello else ["without this extension: pictures only, in 8 bits"]
    notes += [clock] if (clock := clock_note(off_by_s)) else []
    if differences := setup.differences(own):
        notes.append(f"may make other pixels: {', '.join(differences)[:500]}")
    return Greeting(
        version=_version_of(stats),
        device=plain(device.get("type"), 20) or "unknown",
        device_name=plain(device.get("name"), 100) or "unknown",
        has_extension=hello is not None,
        setup=setup,
        classes=classes,
        note="; ".join(notes),
    )


def first_device(stats: Any) -> Mapping[str, Any]:
    """The device that it computes on, as it describes it; empty if it does not."""
    devices = stats.get("devices") if isinstance(stats, dict) else None
    first = devices[0] if isinstance(devices, list) and devices else {}
    return first if isinstance(first, Mapping) else {}


def _number(version: str) -> tuple[int, ...]:
    parts = version.removeprefix("v").split("-")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


def _version_of(stats: Mapping[str, Any]) -> str:
    return plain(stats["system"].get("comfyui_version"), 30)
