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
_OVERRIDE = "optimized_attention_override"
#: The patched object that is the dtype of forwards, where it is not that of the weights.
_DTYPE = "manual_cast_dtype"
#: ComfyUI's callbacks that may change weights or modules, as nodes add them to a ModelPatcher.
_CALLED_AROUND_FORWARDS = ("on_load_after", "on_pre_run", "on_inject_model", "on_prepare_state")
#: The key of ComfyUI's wrapper that puts a compiled model in the place of the model.
_COMPILED = "torch.compile"


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
    attention: _Same

    @classmethod
    def of(cls, patcher: Any) -> Imprint:
        """Take the imprint of a ModelPatcher."""
        objects = {
            name: id(thing)
            for name, thing in patcher.object_patches.items()
            if name.startswith("diffusion_model") or name == _DTYPE
        }
        options = patcher.model_options.get(_OPTIONS, {})
        return cls(_changes(patcher), objects, _Same(options.get(_OVERRIDE)))

    def check(self, patcher: Any) -> None:
        """Raise CannotSplit if a node after Parallel Model changed what followers compute with."""
        now, wrappers = (
            Imprint.of(patcher),
            patcher.model_options.get(_OPTIONS, {}).get("wrappers", {}),
        )
        if patcher.callbacks.get("on_prepare_state"):
            raise CannotSplit("a node changes the model before each step (on_prepare_state).")
        if patcher.model_options.get("multigpu_clones"):
            raise CannotSplit("ComfyUI's own multi-GPU node shares the conditionings already.")
        if any(_COMPILED in by_key for by_key in wrappers.values()):
            raise CannotSplit("the model is compiled (torch.compile): its forward has no borders.")
        if patcher.hook_patches or getattr(patcher, "forced_hooks", None):
            raise CannotSplit(
                "hooks change the weights during sampling, which followers cannot see."
            )
        if now.weights != self.weights or now.objects != self.objects:
            raise CannotSplit(
                "a node after Parallel Model changes the model (a LoRA?): put Parallel Model last."
            )

    def check_modules(self, patcher: Any, model: Any) -> None:
        """Raise CannotSplit if somebody changed modules in a way that followers cannot know."""
        allowed = bool(patcher.injections)  # followers have them too, see ``weights``
        for name, module in model.named_modules():
            hooked = module._forward_hooks or module._forward_pre_hooks
            if hooked or (name and is_replaced(module, "forward") and not allowed):
                raise CannotSplit(f"a node hooks the model's {name or 'forward'} while it samples.")

    def check_call(self, model: Any, options: Mapping[str, Any], ours: str = "") -> None:
        """Raise CannotSplit if the forward would not do on followers what it does here.

        ``ours`` is the one method of the model's object that we replaced.
        """
        _check_methods(model, ours)
        if patches := sorted(_patches(options)):
            raise CannotSplit(
                f"a node or a conditioning patches the inside of the model ({', '.join(patches)}); "
                f"such a patch may remember what it sees, so it must see everything."
            )
        if _Same(options.get(_OVERRIDE)) != self.attention:
            raise CannotSplit(
                "a node after Parallel Model replaces the attention: put Parallel Model last."
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
    found += [(f"injection {key}", entries) for key, entries in patcher.injections.items()]
    for kind in _CALLED_AROUND_FORWARDS:
        by_key = patcher.callbacks.get(kind, {})
        found += [(f"{kind} {key}", entries) for key, entries in by_key.items()]
    changes: dict[str, list[_Same]] = {}
    for name, entries in found:
        changes.setdefault(name, []).extend(_Same(entry) for entry in entries)
    return changes


def _patches(options: Mapping[str, Any]) -> set[str]:
    """The kinds of functions of others that the model calls from inside its forward."""
    return {
        str(kind)
        for name in ("patches", "patches_replace")
        for kind, functions in options.get(name, {}).items()
        if functions
    }


def is_replaced(module: Any, method: str) -> bool:
    """Does an object have another method than its class? Its own may lie there, put back."""
    found = vars(module).get(method)
    return found is not None and getattr(found, "__func__", None) is not getattr(
        type(module), method
    )


def _check_methods(model: Any, ours: str) -> None:
    """Some packs replace methods of the model's object while it runs; followers would not."""
    methods = [name for name in vars(model) if callable(getattr(type(model), name, None))]
    replaced = [name for name in methods if name != ours and is_replaced(model, name)]
    if replaced:
        raise CannotSplit(f"a node replaces the model's own {', '.join(replaced)}.")
