"""What a family gives to be compared: a small model of ComfyUI's own class, and inputs for it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from comfyfleet.parallel.dims import ParallelDims

#: How tokens are split: each rank calls the engine.
SPLITS: Mapping[str, ParallelDims] = {
    "ulysses 2": ParallelDims(ulysses=2),
    "ulysses 3": ParallelDims(ulysses=3),
    "ulysses 4": ParallelDims(ulysses=4),
    "ring 2": ParallelDims(ring=2),
    "ring 3": ParallelDims(ring=3),
    "ring 4": ParallelDims(ring=4),
    "ulysses 2 x ring 2": ParallelDims(ulysses=2, ring=2),
}

#: How a gang shares conditionings and batches: a leader sends each follower its part.
GANGS: Mapping[str, ParallelDims] = {
    "cfg 2": ParallelDims(cfg=2),
    "cfg 2 x ulysses 2": ParallelDims(cfg=2, ulysses=2),
    "batch 2": ParallelDims(batch=2),
    "batch 3": ParallelDims(batch=3),
    "batch 2 x ring 2": ParallelDims(batch=2, ring=2),
}


@dataclass(frozen=True)
class Case:
    """One row: ``build`` makes the model, ``call`` the arguments of its forward.

    Both are called once per test session and must be seeded by the helpers below. ``splits``
    leaves out columns only where the family refuses them (say why beside it).
    """

    family: str
    name: str
    build: Callable[[], nn.Module]
    call: Callable[[], Call]
    splits: tuple[str, ...] = tuple(SPLITS)

    @property
    def id(self) -> str:
        return f"{self.family}: {self.name}"


def make(cls: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A model with ComfyUI's plain operations in float32 and weights that make everything count."""
    import comfy.ops

    options = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    model = cls(*args, **options, **kwargs).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            _fill(name, weight)
    return model


def _fill(name: str, weight: Tensor) -> None:
    """Scales that keep activations near one, with gates and modulations that are not zero."""
    if weight.ndim >= 2:
        weight.normal_(std=1.0 / math.sqrt(weight[0].numel()))
    elif name.endswith("bias"):
        weight.normal_(std=0.1)
    else:
        weight.normal_(mean=1.0, std=0.1)


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def known(function: Callable[..., Any], **parameters: Any) -> dict[str, Any]:
    """Those of the parameters that this version of ComfyUI has."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if name in names}


def needs(function: Callable[..., Any], *names: str) -> None:
    """Skip the case where this version of ComfyUI has no such parameters."""
    if missing := [n for n in names if n not in inspect.signature(function).parameters]:
        pytest.skip(f"this ComfyUI does not know {', '.join(missing)}")
