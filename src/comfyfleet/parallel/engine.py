"""Computes one forward together with other ranks, by a plan, on an unmodified model.

Hooks are put on the modules that the plan names and taken off again after the forward, whatever
happens. Inside, each rank sees its own tokens; attention goes through ComfyUI's
``optimized_attention_override`` and sees all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.plan import ParallelPlan, Part
from comfyfleet.parallel.shards import Shards

#: What ComfyUI calls the options that go down to every attention.
OPTIONS = "transformer_options"
OVERRIDE = "optimized_attention_override"
_PATCHES = ("patches", "patches_replace")


def sequence_forward(
    plan: ParallelPlan,
    mesh: SequenceMesh,
    model: nn.Module,
    forward: Callable[..., Tensor],
    call: Call,
) -> Tensor:
    """``forward(*call.args, **call.kwargs)`` of the model, its tokens split over the mesh.

    All ranks of the mesh must call it with equal arguments; all get the whole output. Raises
    CannotSplit, on all ranks alike, if an argument or a patch cannot be split; LinkLost.
    """
    shards = Shards(plan, mesh, model)
    bound = inspect.signature(forward).bind(*call.args, **call.kwargs)
    arguments = _flat(bound)
    _check(plan, arguments)
    _replace(bound, OPTIONS, shards.options(arguments.get(OPTIONS) or {}))
    if arguments.get("control") is not None:
        _replace(bound, "control", shards.control(arguments["control"]))
    with _hooked(plan, shards, model):
        out = forward(*bound.args, **bound.kwargs)
    shards.check_used()
    return out


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments by name, those of ``**kwargs`` too."""
    found: dict[str, Any] = dict(bound.arguments)
    rest: dict[str, Any] = found.pop(_keywords(bound), {})
    return found | rest


def _replace(bound: inspect.BoundArguments, name: str, value: Any) -> None:
    if name in bound.signature.parameters:
        bound.arguments[name] = value
    else:
        rest = _keywords(bound)
        bound.arguments[rest] = {**bound.arguments.get(rest, {}), name: value}


def _keywords(bound: inspect.BoundArguments) -> str:
    parameters = bound.signature.parameters.values()
    return next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")


def _check(plan: ParallelPlan, arguments: dict[str, Any]) -> None:
    for name, reason in plan.refuses.items():
        if arguments.get(name) is not None:
            raise CannotSplit(f"{plan.family} with {name}: {reason}")
    options = arguments.get(OPTIONS) or {}
    for name in _PATCHES:
        if found := sorted(str(key) for key, value in options.get(name, {}).items() if value):
            raise CannotSplit(
                f"a node patches the model ({name}: {', '.join(found)}); such a patch must see all "
                f"tokens."
            )


@contextmanager
def _hooked(plan: ParallelPlan, shards: Shards, model: nn.Module) -> Iterator[None]:
    """Hooks on the modules of the plan's parts, for the time of one forward."""
    handles = []
    try:
        for module, parts in _modules(plan, model):
            before, after = _hooks(parts, shards, _names(module.forward))
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(
    parts: list[Part], shards: Shards, names: list[str]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = [*names, *(str(number) for number in range(len(names), len(args)))]
        arguments = dict(zip(named, args, strict=False)) | kwargs
        changed = {name: value for part in parts for name, value in shards.begin(part, arguments)}
        positional = (changed.pop(name, value) for name, value in zip(named, args, strict=False))
        return tuple(positional), kwargs | changed

    def after(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        for part in parts:
            out = shards.end(part, out)
        return out

    return before, after


def _names(forward: Callable[..., Any]) -> list[str]:
    """The positional arguments of a module's forward, in order; not those of ``*args``."""
    if not inspect.ismethod(forward):  # somebody replaced it, perhaps by what holds the module
        return _positional(forward)
    return _positional_of_class(forward.__func__)[1:]


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


#: Remembered, as reading a signature takes as long as a small layer.
_positional_of_class = lru_cache(maxsize=256)(_positional)


def _modules(plan: ParallelPlan, model: nn.Module) -> Iterator[tuple[nn.Module, list[Part]]]:
    """Each module that the plan names, with all of its parts, in the plan's order."""
    found: dict[int, tuple[nn.Module, list[Part]]] = {}
    for part in plan.parts:
        for module in _resolve(model, part.path.split(".")):
            found.setdefault(id(module), (module, []))[1].append(part)
    yield from found.values()


def _resolve(module: Any, path: list[str]) -> list[nn.Module]:
    if not path:
        return [module]
    step, rest = path[0], path[1:]
    if step == "*":
        return [found for child in module for found in _resolve(child, rest)]
    if step.lstrip("-").isdigit():
        children = list(module)
        return _resolve(children[int(step)], rest) if children else []
    child = getattr(module, step, None)
    return [] if child is None else _resolve(child, rest)
