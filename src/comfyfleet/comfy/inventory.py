"""What this ComfyUI is and can run."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.model_management
import execution
import nodes

from comfyfleet.client.problems import problems_of
from comfyfleet.errors import Problem

logger = logging.getLogger(__name__)


def with_assets(ui: dict[str, Any]) -> dict[str, Any]:
    """A node's output of files that lie here, as ComfyUI makes it: newer ones may note assets."""
    try:
        from comfy_execution.asset_enrichment import enrich_output_with_assets
    except ImportError:
        return ui
    found: dict[str, Any] = enrich_output_with_assets(ui)
    return found


def is_output(class_type: str) -> bool:
    """True for nodes that show or save something: a prompt runs for these."""
    return bool(getattr(nodes.NODE_CLASS_MAPPINGS.get(class_type), "OUTPUT_NODE", False))


def device_name() -> str:
    """ComfyUI's own device as it names it, such as "cuda:0 NVIDIA H200 : cudaMallocAsync"."""
    device = comfy.model_management.get_torch_device()
    return str(comfy.model_management.get_torch_device_name(device))


def device_memory() -> tuple[int, int]:
    """Free and total bytes of ComfyUI's own device; of main memory if that is the CPU."""
    manager = comfy.model_management
    device = manager.get_torch_device()
    return int(manager.get_free_memory(device)), int(manager.get_total_memory(device))


def node_classes() -> list[str]:
    """All node classes of this ComfyUI."""
    return list(nodes.NODE_CLASS_MAPPINGS)


def described(classes: Iterable[str]) -> dict[str, Any]:
    """What these node classes take, as far as /object_info says it."""
    known = nodes.NODE_CLASS_MAPPINGS
    inputs = {name: {"input": _inputs(known[name])} for name in classes if name in known}
    found: dict[str, Any] = json.loads(json.dumps(inputs, default=str))
    return found


def _inputs(node: Any) -> Any:
    try:
        return node.INPUT_TYPES()
    except Exception:  # any pack's code; ComfyUI tells of the other nodes too
        logger.exception("%s cannot say what it takes", node)
        return {}


async def check_prompt(prompt: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """Everything that ComfyUI's validation finds wrong, in any of the outputs; empty if nothing."""
    own = copy.deepcopy(dict(prompt))  # validation converts values in place
    answer = await execution.validate_prompt("comfyfleet-check", own, None)
    return problems_of(answer[1], answer[3], own)
