"""Small models of plain modules, and a forward of them over ranks beside that of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.comm import World
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.engine import sequence_forward
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.plan import ParallelPlan, Part
from tests.parallel.attention import optimized_attention
from tests.parallel.ranks import Ranks

HEADS, WIDTH = 3, 6
#: Ulysses and ring degrees.
MESHES = [(3, 1), (1, 3), (2, 2)]
WEIGHTS = (1.0, 2.0, 1.5, 1.0)

ALL = ("all",)
ENTER = Part(path="blocks.0", enter={"x": ALL})
ATTEND = Part(path="blocks.*", attends=(ALL,))
LEAVE = Part(path="final", leave={0: ALL})


def plan_of(*parts: Part, **rest: Any) -> ParallelPlan:
    return ParallelPlan(family="toy", models=("toy",), parts=parts, **rest)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mix(x: Tensor, options: Any, keys: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """A layer of attention, with queries, keys and values that differ."""
    q = layer_norm(x, [WIDTH])
    keys = q if keys is None else layer_norm(keys, [WIDTH])
    k, v = keys.flip(2), keys.roll(1, 2) - keys
    return x + optimized_attention(q, k, v, HEADS, mask=mask, transformer_options=options)


class Block(nn.Module):
    def forward(self, x, transformer_options=None):
        return mix(x, transformer_options)


class Stack(nn.Module):
    """One stream through blocks that all get the same further arguments."""

    def __init__(self, block: Callable[[], nn.Module] = Block, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.final = nn.Identity()

    def forward(self, x, transformer_options=None, control=None, **given):
        for i, block in enumerate(self.blocks):
            x = block(x, transformer_options=transformer_options, **given)
            added = (control or {}).get("input", ())
            if i < len(added) and added[i] is not None:
                x = x.clone()
                x[:, : added[i].shape[1]] += added[i]
        return self.final(x)


class Pair(nn.Module):
    """Text and image, which attend to each other in every block."""

    def __init__(self, block: Callable[[], nn.Module], depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.final = nn.Identity()

    def forward(self, text, image, transformer_options=None, **given):
        for block in self.blocks:
            text, image = block(text, image, transformer_options=transformer_options, **given)
        return self.final(image)


class PairBlock(nn.Module):
    def forward(self, text, image, transformer_options=None):
        both = mix(torch.cat([text, image], 1), transformer_options)
        return both.split([text.shape[1], image.shape[1]], 1)


def forward(world: World, plan: ParallelPlan, model: nn.Module, call: Call, mesh: tuple[int, int]):
    """What one rank gets."""
    dims = ParallelDims(ulysses=mesh[0], ring=mesh[1])
    place = SequenceMesh(world, dims, WEIGHTS[: dims.size])
    return sequence_forward(plan, place, model, model.forward, call)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """As one rank finds it, but for the order of sums."""
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def numbers(value: Any) -> Any:
    """A tree whose tensors are lists, to be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    return [numbers(item) for item in value] if isinstance(value, (list, tuple)) else value


def check(
    ranks: Ranks,
    plan: ParallelPlan,
    model: nn.Module,
    *args: Any,
    meshes: list[tuple[int, int]] = MESHES,
    **kwargs: Any,
) -> None:
    """Assert that ranks find what one finds, and leave the arguments as they were."""
    call, before = Call(args, kwargs), numbers((args, kwargs))
    with torch.inference_mode():
        wanted = model.forward(*args, **kwargs)
    for mesh in meshes:
        models = [copy.deepcopy(model) for _ in range(4)]
        found = ranks.run(
            mesh[0] * mesh[1],
            lambda world, models=models, mesh=mesh: forward(
                world, plan, models[world.place.rank], call, mesh
            ),
        )
        for out in found:
            assert_same(out, wanted)
    assert numbers((args, kwargs)) == before


def refusal(
    ranks: Ranks,
    plan: ParallelPlan,
    model: nn.Module,
    *args: Any,
    mesh: tuple[int, int] = (2, 1),
    **kwargs: Any,
) -> str:
    """Why it cannot be split: all ranks say the same."""

    def work(world: World) -> str:
        with pytest.raises(CannotSplit) as caught:
            forward(world, plan, copy.deepcopy(model), Call(args, kwargs), mesh)
        return str(caught.value)

    told = set(ranks.run(mesh[0] * mesh[1], work))
    assert len(told) == 1, told
    return told.pop()
