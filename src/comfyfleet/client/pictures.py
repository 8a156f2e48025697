"""Results of a ComfyUI without this extension: pictures that core nodes save, fetched by /view."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from comfyfleet.client.inventory import Inventory
from comfyfleet.client.link import Link, read_limited
from comfyfleet.errors import InputError, Unreachable
from comfyfleet.graph import links_of
from comfyfleet.work import OutputFile, Packed, Prompt, TensorRef

#: The internal node at the end of a unit's graph; see ``extension.nodes.internal``.
RETURN_NODE = "FleetReturn"
#: A picture of 32768 x 32768 is beyond any model; PIL itself warns far below.
_MAX_PIXELS = 1 << 30
#: An hour of video is below that.
_MAX_FILE_BYTES = 8 << 30

Entry = Mapping[str, Any]


def unreturnable(prompt: Prompt, inventory: Inventory) -> list[str]:
    """What a unit shall return that is no picture, and so cannot come from there."""
    return [
        f"this extension, for {name!r} of type {kind or 'list'} (only IMAGE comes without it)"
        for node in prompt.values()
        if node["class_type"] == RETURN_NODE
        for name, (source, slot) in links_of(node).items()
        if (kind := inventory.output_type(prompt[source]["class_type"], slot)) != "IMAGE"
    ]


def with_previews(prompt: Prompt) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """The prompt with core nodes in place of return nodes, and which input each stands for."""
    found: dict[str, Mapping[str, Any]] = {}
    stands: dict[str, str] = {}
    for node_id, node in prompt.items():
        if node["class_type"] != RETURN_NODE:
            found[node_id] = node
            continue
        for name, (source, slot) in links_of(node).items():
            stands[f"{node_id}.{name}"] = name
            inputs = {"images": [source, slot]}
            found[f"{node_id}.{name}"] = {"class_type": "PreviewImage", "inputs": inputs}
    return found, stands


async def fetch_values(
    link: Link, outputs: Mapping[str, Any], stands: Mapping[str, str]
) -> Packed | None:
    """What a return node would have returned, in 8 bits per colour; None if there was none.

    Raises Unreachable for what is no picture.
    """
    buffers: list[Any] = []
    skeleton: dict[str, Any] = {}
    for node_id, name in stands.items():
        pictures = [
            _pixels(link.url, await fetch(link, entry)) for _, entry in entries(outputs, [node_id])
        ]
        if len({each.shape for each in pictures}) != 1:
            raise Unreachable(link.url, f"it made {len(pictures)} pictures that are no batch")
        batch = np.stack(pictures)
        skeleton[name] = [TensorRef(len(buffers), "float32", batch.shape)]
        buffers.append(batch.reshape(-1).view(np.uint8))
    return Packed(skeleton, buffers) if stands else None


async def fetch_files(link: Link, outputs: Mapping[str, Any], skip: Sequence[str]) -> Any:
    """What other output nodes saved; previews only if nothing else was saved."""
    saved = [each for each in entries(outputs) if each[0] not in skip]
    kinds = {entry["type"] for _, entry in saved}
    wanted = "output" if "output" in kinds else "temp"
    return [
        OutputFile(node_id=node_id, name=_path_of(entry), data=bytes(await fetch(link, entry)))
        for node_id, entry in saved
        if entry["type"] == wanted
    ]


def entries(
    outputs: Mapping[str, Any], only: Sequence[str] | None = None
) -> Iterator[tuple[str, Entry]]:
    """Each file that a node's output names, with the node's id."""
    for node_id, ui in outputs.items():
        if (only is None or node_id in only) and isinstance(ui, Mapping):
            for found in ui.values():
                for entry in found if isinstance(found, list) else ():
                    if _is_file(entry):
                        yield node_id, entry


def _is_file(entry: Any) -> bool:
    named = isinstance(entry, Mapping) and isinstance(entry.get("filename"), str)
    return named and entry.get("type") in ("output", "temp")


async def fetch(link: Link, entry: Entry) -> bytes:
    """The bytes of a file. Raises Unreachable if it does not come whole."""
    names = {name: str(entry.get(name, "")) for name in ("filename", "subfolder", "type")}
    async with link.request("GET", f"/view?{urlencode(names)}") as response:
        if response.status != 200:
            raise Unreachable(link.url, f"it answered {response.status} for its own {names}")
        data = await read_limited(response, _MAX_FILE_BYTES)
    length = response.headers.get("Content-Length")
    if length is not None and length != str(len(data)):
        raise Unreachable(link.url, f"{names['filename']} came short: {len(data)} of {length}")
    return data


def _path_of(entry: Entry) -> str:
    folder, name = str(entry.get("subfolder", "")), str(entry["filename"])
    return f"{folder}/{name}" if folder else name


def _pixels(url: str, data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A picture as [height, width, channels], 0 to 1, as ComfyUI loads it."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InputError(f"{image.width} x {image.height} pixels")
            image.load()
            shown = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
            return np.asarray(shown).astype(np.float32) / 255.0
    except (OSError, ValueError, SyntaxError, InputError, Image.DecompressionBombError) as error:
        raise Unreachable(url, f"it sent a picture that is none: {error}") from None
