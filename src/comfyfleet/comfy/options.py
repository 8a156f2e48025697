"""What a MODEL carries besides its weights, and what of it a follower cannot know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.tree import sendable

_OPTIONS = "transformer_options"


def with_options(forward: Callable[..., Any], call: Call, change: Callable[[Any], Any]) -> Call:
    """The call with its transformer options changed, wherever the forward takes them."""
    names = list(inspect.signature(forward).parameters)
    place = names.index(_OPTIONS) if _OPTIONS in names else len(call.args)
    if place < len(call.args):
        args = list(call.args)
        args[place] = change(args[place])
        return Call(tuple(args), call.kwargs)
    if _OPTIONS in call.kwargs:
        return Call(call.args, {**call.kwargs, _OPTIONS: change(call.kwargs[_OPTIONS])})
    return call


def options_of(forward: Callable[..., Any], call: Call) -> Mapping[str, Any]:
    """The transformer options of a call."""
    bound = inspect.signature(forward).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    return named.get(_OPTIONS) or call.kwargs.get(_OPTIONS) or {}


class _Same:
    """Equal to itself only, as tensors inside of what it holds cannot be compared."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._thing is other._thing

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Imprint:
    """What a model was like where the Parallel Model node stands: followers have the same."""

    weights: Mapping[str, Sequence[_Same]]
    objects: Mapping[str, int]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, patcher: Any) -> Imprint:
        """Take the imprint of a ModelPatcher."""
        objects = {
            name: id(thing)
            for name, thing in patcher.object_patches.items()
            if name.startswith("diffusion_model")
        }
        options = patcher.model_options.get(_OPTIONS, {})
        return cls(_changes(patcher), objects, _functions(options))

    def check(self, patcher: Any) -> None:
        """Raise CannotSplit if a node after Parallel Model changed what followers compute with."""
        now = Imprint.of(patcher)
        if patcher.hook_patches or getattr(patcher, "forced_hooks", None):
            raise CannotSplit(
                "hooks change the weights during sampling, which followers cannot see."
            )
        if now.weights != self.weights or now.objects != self.objects:
            raise CannotSplit(
                "a node after Parallel Model changes the model (a LoRA?): put Parallel Model last."
            )

    def check_call(self, model: Any, options: Mapping[str, Any], ours: str = "") -> None:
        """Raise CannotSplit if the forward would not do on followers what it does here.

        ``ours`` is the one method of the model's object that we replaced.
        """
        _check_methods(model, ours)
        now = _functions(options)
        if changed := sorted(k for k in {*now, *self.options} if now.get(k) != self.options.get(k)):
            raise CannotSplit(
                f"a node after Parallel Model, or a conditioning, patches the model "
                f"({', '.join(changed)}): put Parallel Model last."
            )


def stripped(forward: Callable[..., Any], call: Call) -> Call:
    """What of a call is sent: followers have the functions from their own graph."""
    return with_options(
        forward, call, lambda options: {k: v for k, v in options.items() if sendable(v)}
    )


def completed(forward: Callable[..., Any], call: Call, own: Mapping[str, Any]) -> Call:
    """A received call with the functions that this rank's own model has."""
    mine = {k: v for k, v in own.items() if k not in ("wrappers", "callbacks")}
    return with_options(forward, call, lambda options: {**mine, **options})


def _changes(patcher: Any) -> dict[str, list[_Same]]:
    """What changes each weight. Not ``patches_uuid``: it changes with each use of hooks, too."""
    found = [*patcher.patches.items(), *getattr(patcher, "weight_wrapper_patches", {}).items()]
    changes: dict[str, list[_Same]] = {}
    for name, entries in found:
        changes.setdefault(name, []).extend(_Same(entry) for entry in entries)
    return changes


def _functions(options: Mapping[str, Any]) -> dict[str, Any]:
    """The functions that models call from inside their forward, by kind, for comparison."""
    found: dict[str, Any] = {}
    for kind, functions in options.get("patches", {}).items():
        found[kind] = {id(function) for function in functions}
    for kind, blocks in options.get("patches_replace", {}).items():
        found[f"{kind} replaced"] = {str(block): id(function) for block, function in blocks.items()}
    override = options.get("optimized_attention_override")
    found["attention"] = id(override) if override is not None else None
    return {kind: value for kind, value in found.items() if value}


def _check_methods(model: Any, ours: str) -> None:
    """Some packs replace methods of the model's object while it runs; followers would not."""
    replaced = [
        name for name in vars(model) if name != ours and callable(getattr(type(model), name, None))
    ]
    if replaced:
        raise CannotSplit(f"a node replaces the model's own {', '.join(replaced)}.")
