"""Which files of a worker on the network come home, and by which names.

What it names would be written into the owner's folders, and shown by the owner's ComfyUI on its own
origin. So names lead nowhere, and only kinds come that neither a browser runs as a page nor Python
unpickles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from comfyfleet.client.texts import plain
from comfyfleet.errors import Unfit

#: Pictures, video, sound, 3-D, tensors (safetensors) and plain text. Not among them: SVG, HTML and
#: XML, which may hold scripts; PDF; checkpoints and arrays that hold pickles.
_KINDS = frozenset(
    {
        *("png", "apng", "jpg", "jpeg", "webp", "gif", "avif", "jxl", "bmp", "tif", "tiff"),
        *("exr", "hdr", "mp4", "webm", "mkv", "mov", "avi", "m4v"),
        *("flac", "mp3", "wav", "ogg", "opus", "m4a", "aac"),
        *("glb", "gltf", "obj", "ply", "stl", "fbx", "usdz", "spz", "splat", "ksplat"),
        *("latent", "safetensors", "txt", "json", "csv", "srt", "vtt"),
    }
)
#: What no name of a file may hold on some system.
_ODD = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
#: Of subfolder and name: any file system takes that, and our numbers besides.
_MAX_PATH_BYTES = 200
#: Devices, on Windows.
_RESERVED = re.compile(
    r"(con|conin\$|conout\$|prn|aux|nul|(com|lpt)[\d\xb9\xb2\xb3]) *(\..*)?", re.IGNORECASE
)


def named_files(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each file that nodes' outputs name, with the node's id."""
    for node_id, ui in outputs.items():
        for found in ui.values() if isinstance(ui, Mapping) else ():
            for entry in found if isinstance(found, list) else ():
                if named_file(entry):
                    yield node_id, entry


def named_entries(ui: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Type, subfolder and name of each file that a node's output names; each once, in order."""
    entries = (entry for _, entry in named_files({"": ui}))
    return list(
        dict.fromkeys(
            (entry["type"], str(entry.get("subfolder", "")), entry["filename"]) for entry in entries
        )
    )


def named_file(entry: Any) -> bool:
    """Does a part of a node's output name a file that can come home?"""
    named = isinstance(entry, Mapping) and isinstance(entry.get("filename"), str)
    return named and entry.get("type") in ("output", "temp")


def key_of(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Type, subfolder (with forward slashes) and name of a file.

    Raises Unfit for a name that leads elsewhere, or a kind that is not taken.
    """
    name, folder = str(entry["filename"]), entry.get("subfolder", "")
    folder = folder.replace("\\", "/") if isinstance(folder, str) else "/"
    parts = folder.split("/") if folder else []
    long = len("/".join((*parts, name)).encode(errors="replace")) > _MAX_PATH_BYTES
    if long or not all(map(is_plain, (*parts, name))):
        raise Unfit(f"it saved {plain(f'{folder}/{name}', 100)!r}, which is no name of a file")
    kind = name.rpartition(".")[2].lower() if "." in name else ""
    if kind not in _KINDS:
        raise Unfit(
            f"it saved {plain(name, 100)!r}: files of such a kind can hold programs and are not "
            "taken from a worker on the network. Run this on a worker of this machine"
        )
    return (entry["type"], "/".join(parts), name)


def translated(output: Mapping[str, Any]) -> dict[str, Any]:
    """A node's output with the subfolders as ``key_of`` has them. Raises Unfit as it does."""
    return {
        key: [_translated(each) for each in value] if isinstance(value, list) else value
        for key, value in output.items()
    }


def _translated(entry: Any) -> Any:
    return {**entry, "subfolder": key_of(entry)[1]} if named_file(entry) else entry


def is_plain(part: str) -> bool:
    """Does it name one thing, on any system, that is not hidden?"""
    return (
        part.isprintable()
        and part.strip(" .") == part != ""
        and not _ODD.search(part)
        and not _RESERVED.fullmatch(part)
    )
