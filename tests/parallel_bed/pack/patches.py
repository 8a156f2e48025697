"""Test nodes that patch a model in the ways in which packs do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP

MODEL = {"required": {"model": ("MODEL",)}}


def attention(model: Any) -> None:
    """Another attention for all of the model."""

    def weaker(kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return 0.8 * kernel(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = weaker


def block(model: Any) -> None:
    """A block that is replaced: by itself, and then some."""

    def louder(args: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        out = more["original_block"](args)
        return {**out, "img": 1.3 * out["img"]}

    model.set_model_patch_replace(louder, "dit", "double_block", 0)


def function(model: Any) -> None:
    """A wrapper around the model, as most packs have it."""

    def quieter(apply_model: Callable[..., Any], args: dict[str, Any]) -> Any:
        return 0.9 * apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(quieter)


def forward(model: Any) -> None:
    """A wrapper around the forward of the diffusion model."""

    def quieter(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return 0.9 * executor(0.95 * x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", quieter)


def guidance(model: Any) -> None:
    """A change of what the conditionings are combined to."""
    model.set_model_sampler_post_cfg_function(lambda args: 0.9 * args["denoised"])


def method(model: Any) -> None:
    """A method of the model's object that is replaced while it is loaded."""
    inner = model.model.diffusion_model
    name = "forward_orig" if hasattr(inner, "forward_orig") else "forward"
    original = getattr(type(inner), name)

    def quieter(self: Any, *args: Any, **kwargs: Any) -> Any:
        return 0.9 * original(self, *args, **kwargs)

    model.add_object_patch(f"diffusion_model.{name}", partial(quieter, inner))


KINDS = {made.__name__: made for made in (attention, block, function, forward, guidance, method)}


class Patched:
    """A clone of a MODEL with one patch; each kind changes the picture."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**MODEL["required"], "kind": (sorted(KINDS),)}}

    def patch(self, model: Any, kind: str):
        clone = model.clone()
        KINDS[kind](clone)
        return (clone,)
