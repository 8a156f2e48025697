"""Results of a ComfyUI without this extension: pictures that core nodes save, fetched by /view."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from comfyfleet.client.inventory import Inventory
from comfyfleet.client.limits import room
from comfyfleet.client.link import Link
from comfyfleet.client.names import key_of, named_files
from comfyfleet.client.texts import plain
from comfyfleet.errors import Unfit, Unreachable
from comfyfleet.graph import links_of
from comfyfleet.work import OutputFile, Packed, Prompt, TensorRef

#: The internal node at the end of a unit's graph; see ``extension.nodes.internal``.
RETURN_NODE = "FleetReturn"
#: Its input that names the attempt; no pack's own node has one of this name.
ATTEMPT = "comfyfleet_attempt"
#: An hour of video is below that.
_MAX_FILE_BYTES = 8 << 30
#: More than a node saves.
_MAX_FILES = 10_000

#: Of RGBA in 8 bits, and in floats.
_BYTES_PER_PIXEL = 4 + 16

Entry = Mapping[str, Any]
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


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

    Raises Unreachable for what is no picture, Unfit for pictures that are no batch.
    """
    buffers: list[Any] = []
    skeleton: dict[str, Any] = {}
    for node_id, name in stands.items():
        batch = np.stack(await _batch(link, [entry for _, entry in entries(outputs, [node_id])]))
        skeleton[name] = [TensorRef(len(buffers), "float32", batch.shape)]
        buffers.append(batch.reshape(-1).view(np.uint8))
    return Packed(skeleton, buffers) if stands else None


async def _batch(link: Link, named: Sequence[Entry]) -> list[Pixels]:
    left = room()
    pictures: list[Pixels] = []
    for entry in named:
        data = await fetch(link, entry)
        pictures.append(await asyncio.to_thread(_pixels, link.url, data, left))
        left -= 2 * pictures[-1].nbytes  # they are copied into one
    sizes = {"x".join(map(str, each.shape)) for each in pictures}
    if len(sizes) != 1:
        told = f"of several sizes ({', '.join(sorted(sizes)[:5])})" if sizes else "at all"
        raise Unfit(
            f"{link.url} made no pictures {told} that are one batch; without this extension "
            "only such come home"
        )
    return pictures


async def fetch_files(
    link: Link, outputs: Mapping[str, Any], skip: Sequence[str]
) -> list[OutputFile]:
    """What other output nodes saved; previews only if nothing else was saved.

    Raises Unfit for a file that does not come home.
    """
    saved = [each for each in entries(outputs) if each[0] not in skip]
    kinds = {entry["type"] for _, entry in saved}
    wanted = "output" if "output" in kinds else "temp"
    chosen = [(node_id, entry) for node_id, entry in saved if entry["type"] == wanted]
    names = [key_of(entry)[1:] for _, entry in chosen]  # all of them before any is fetched
    found: list[OutputFile] = []
    left = room()
    for (node_id, entry), (folder, name) in zip(chosen, names, strict=True):
        data = await fetch(link, entry, left)
        left -= len(data)
        path = f"{folder}/{name}" if folder else name
        found.append(OutputFile(node_id=node_id, name=path, data=data, foreign=True))
    return found


def entries(
    outputs: Mapping[str, Any], only: Sequence[str] | None = None
) -> Iterator[tuple[str, Entry]]:
    """Each file that a node's output names, with the node's id. Raises Unfit for too many."""
    found = [each for each in named_files(outputs) if only is None or each[0] in only]
    if len(found) > _MAX_FILES:
        raise Unfit(f"it names {len(found)} files; {_MAX_FILES} come home at once")
    yield from found


async def fetch(link: Link, entry: Entry, max_bytes: int = _MAX_FILE_BYTES) -> bytes:
    """The bytes of a file. Raises Unreachable if it does not come whole, Unfit if it is named ill.

    After a break it is asked for again, while the link has patience.
    """
    kind, folder, name = key_of(entry)
    query = urlencode({"filename": name, "subfolder": folder, "type": kind})

    async def get() -> bytes:
        async with link.request("GET", f"/view?{query}") as response:
            if response.status in (403, 404):
                raise Unfit(f"{link.url} has its own file {name} no more ({response.status})")
            if response.status != 200:
                raise Unreachable(link.url, f"it answered {response.status} for its own {name}")
            if (response.content_length or 0) > max_bytes:
                raise Unfit(f"{link.url} saved {name}, for which there is no memory here")
            data = await link.read(response, min(max_bytes, _MAX_FILE_BYTES))
        length = response.headers.get("Content-Length")
        if length is not None and length != str(len(data)):
            raise Unreachable(link.url, f"{name} came short: {len(data)} of {length}")
        return data

    return await link.patiently(get)


def _pixels(url: str, data: bytes, max_bytes: int) -> Pixels:
    """A picture as [height, width, channels], 0 to 1, as ComfyUI loads it.

    PIL itself refuses pictures of over 179 million pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height * _BYTES_PER_PIXEL > max_bytes:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            shown = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
            pixels: Pixels = np.asarray(shown).astype(np.float32)
            pixels /= 255.0
            return pixels
    except Exception as error:  # a decoder that is given anything raises anything
        raise Unreachable(
            url, f"it sent a picture that is none: {plain(str(error), 200)}"
        ) from None
