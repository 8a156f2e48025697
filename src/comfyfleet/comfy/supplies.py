"""On a node of a cluster: what a prompt needs there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import nodes
import psutil

from comfyfleet.client.inventory import Inventory, Need
from comfyfleet.client.weights import weights_bytes
from comfyfleet.comfy.inventory import described, device_memory
from comfyfleet.graph import LOADER_INPUTS, find_files, is_file
from comfyfleet.work import Prompt


def fitted(
    prompt: Prompt, coming: frozenset[str]
) -> tuple[dict[str, Mapping[str, Any]], list[Need | str]]:
    """The prompt with names of models as they are spelled here, and all that is missing here.

    ``coming``: files that are sent before it runs.
    """
    classes = {node["class_type"] for node in prompt.values()}
    own = Inventory("this node", described(classes | {"SaveImage"}))
    adapted = own.adapted(prompt)
    missing = own.missing(adapted, coming | _own_files(adapted))
    lacking: list[Need | str] = [need for need in missing if not _judges_itself(need)]
    needed, has = weights_bytes(adapted, _model_folders()), _memory()
    if needed > has:
        has_gb = f"it has {has / 1e9:.1f} GB"
        lacking.append(f"memory for models of {needed / 1e9:.1f} GB ({has_gb})")
    return adapted, lacking


def _judges_itself(need: Need) -> bool:
    """Does the node look by itself at what is chosen? Then ComfyUI takes what no list has."""
    class_type, _, name = need.input.rpartition(".")
    judge = getattr(nodes.NODE_CLASS_MAPPINGS.get(class_type), "VALIDATE_INPUTS", None)
    if judge is None or class_type in LOADER_INPUTS:
        return False
    known = inspect.getfullargspec(judge)
    return name in known.args or known.varkw is not None


def _own_files(prompt: Prompt) -> frozenset[str]:
    """What lies in this machine's own folders: lists of choices leave some of it out."""

    def exists(folder: str, name: str) -> bool:
        return is_file(Path(folder_paths.get_directory_by_type(folder)) / name)

    found = find_files(prompt, exists)
    names = (name for ref in found for name in (ref.name, f"{ref.name} [{ref.folder}]"))
    return frozenset(names)


def _model_folders() -> list[Path]:
    known = folder_paths.folder_names_and_paths
    return [Path(path) for name in known for path in folder_paths.get_folder_paths(name)]


def _memory() -> int:
    """Bytes of this machine's memory, and of the device's where that has some of its own."""
    own = comfy.model_management.get_torch_device().type not in ("cpu", "mps")
    return int(psutil.virtual_memory().total) + (device_memory()[1] if own else 0)
