"""What this ComfyUI is and can run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import execution
import nodes

from comfyfleet.client.problems import problems_of
from comfyfleet.errors import Problem


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


async def check_prompt(prompt: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """Everything that ComfyUI's validation finds wrong, in any of the outputs; empty if nothing."""
    own = copy.deepcopy(dict(prompt))  # validation converts values in place
    answer = await execution.validate_prompt("comfyfleet-check", own, None)
    return problems_of(answer[1], answer[3], own)
