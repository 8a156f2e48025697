"""One plan per model family: data, read by the engine. A new family is a file here and a row."""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.plan import ParallelPlan
from comfyfleet.parallel.plans import (
    aura_flow,
    chroma,
    cosmos_predict2,
    flux,
    hidream,
    hunyuan_video,
    ltxv,
    lumina,
    qwen_image,
    sd3,
    wan,
)

PLANS: tuple[ParallelPlan, ...] = (
    aura_flow.PLAN,
    chroma.PLAN,
    chroma.RADIANCE,
    cosmos_predict2.PLAN,
    flux.PLAN,
    hidream.PLAN,
    hunyuan_video.IMAGE_FIRST,
    hunyuan_video.PLAN,
    ltxv.PLAN,
    ltxv.WITH_SOUND,
    lumina.PIXELS,
    lumina.PLAN,
    qwen_image.PLAN,
    sd3.PLAN,
    wan.PLAN,
)


def find_plan(model: nn.Module) -> ParallelPlan:
    """The plan of a diffusion model. Raises CannotSplit if its class has none."""
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    for plan in PLANS:
        if name in plan.models and _has(model, plan.only_if):
            return plan
        if name in plan.refused_models:
            raise CannotSplit(f"{type(model).__name__}: {plan.refused_models[name]}")
    raise CannotSplit(f"{type(model).__name__} has no plan for its tokens yet.")


def _has(model: nn.Module, attribute: str) -> bool:
    try:
        return not attribute or bool(attrgetter(attribute)(model))
    except AttributeError:
        return False
