"""The files that a prompt names: what a worker on another machine must be sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyfleet.errors import Problem
from comfyfleet.graph.prompt import Prompt, as_link, problem_at

#: Answers whether a folder of ComfyUI ("input", "output" or "temp") holds a file of that name.
Exists = Callable[[str, str], bool]

WEIGHTS_EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".exr")
VIDEO_EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
AUDIO_EXTENSIONS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac")
OTHER_EXTENSIONS = (".latent", ".glb", ".gltf", ".obj", ".ply")
FILE_EXTENSIONS = (
    WEIGHTS_EXTENSIONS + IMAGE_EXTENSIONS + VIDEO_EXTENSIONS + AUDIO_EXTENSIONS + OTHER_EXTENSIONS
)

#: ComfyUI's own loaders (0.3.75), which fail for certain if the file is not there.
LOADER_INPUTS: Mapping[str, str] = {
    "LoadAudio": "audio",
    "LoadImage": "image",
    "LoadImageMask": "image",
    "LoadImageOutput": "image",
    "LoadLatent": "latent",
    "LoadVideo": "file",
}

#: Well above any real name, well below a prompt text that must not reach the file system.
MAX_NAME_LENGTH = 1024

_ANNOTATION = re.compile(r" \[(input|output|temp)\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file of a ComfyUI folder, and the input that names it."""

    node_id: str
    class_type: str
    input: str
    name: str
    folder: str


def is_file(path: Path) -> bool:
    """Is there such a file? Of a text that can be no name of one, such as a long one: no."""
    return os.path.isfile(path)  # Path.is_file raises for these


def find_files(prompt: Prompt, exists: Exists) -> list[FileRef]:
    """Return each existing file that any input of any node names, also in lists and objects.

    Names that lead out of ComfyUI's folders (absolute, or with "..") are not followed.
    """
    return [
        FileRef(
            node_id=node_id,
            class_type=node.get("class_type", ""),
            input=input_name,
            name=name,
            folder=folder,
        )
        for node_id, node in prompt.items()
        for input_name, value in node.get("inputs", {}).items()
        for folder, name in dict.fromkeys(map(_split_annotation, _strings_of_input(value)))
        if _may_be_name(name) and exists(folder, name)
    ]


def missing_files(prompt: Prompt, exists: Exists) -> list[Problem]:
    """Return a problem for each of ComfyUI's own loaders whose file is not there."""
    problems = []
    for node_id, node in prompt.items():
        input_name = LOADER_INPUTS.get(node.get("class_type", ""), "")
        value = node.get("inputs", {}).get(input_name)
        if not isinstance(value, str):
            continue
        folder, name = _split_annotation(value)
        if not exists(folder, name):
            message = (
                f"input {input_name!r} is {name!r}, which is not in ComfyUI's {folder} folder; "
                "put the file there, or choose another"
            )
            problems.append(problem_at(prompt, node_id, message))
    return problems


def looks_like_file(value: object) -> bool:
    """Return whether a value reads like the name of a media, latent or weights file."""
    if not isinstance(value, str):
        return False
    _, name = _split_annotation(value)
    return _is_short_line(name) and name.lower().endswith(FILE_EXTENSIONS)


def is_weights_file(name: str) -> bool:
    """Return whether a string names a file of model weights."""
    return _is_short_line(name) and name.lower().endswith(WEIGHTS_EXTENSIONS)


def strings_in(value: object) -> Iterator[str]:
    """Yield every string in a literal, however deep in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


def _strings_of_input(value: object) -> Iterator[str]:
    return iter(()) if as_link(value) else strings_in(value)


def _split_annotation(text: str) -> tuple[str, str]:
    """Return folder and name of ComfyUI's "name [folder]"; without one, the input folder."""
    match = _ANNOTATION.search(text)
    return (match[1], text[: match.start()]) if match else ("input", text)


def _is_short_line(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_LENGTH and not any(letter in name for letter in "\n\r\0")


def _may_be_name(name: str) -> bool:
    is_rooted = name.startswith(("/", "\\")) or name[1:2] == ":"
    return _is_short_line(name) and not is_rooted and ".." not in re.split(r"[\\/]", name)
