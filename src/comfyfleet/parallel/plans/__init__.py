"""One plan per model family: data, read by the engine. A new family is a file here and a row."""

from __future__ import annotations

from torch import nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.plan import ParallelPlan
from comfyfleet.parallel.plans import flux, wan

PLANS: tuple[ParallelPlan, ...] = (wan.PLAN, flux.PLAN)


def find_plan(model: nn.Module) -> ParallelPlan:
    """The plan of a diffusion model. Raises CannotSplit if its class has none."""
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    for plan in PLANS:
        if name in plan.models:
            return plan
        if name in plan.refused_models:
            raise CannotSplit(f"{type(model).__name__}: {plan.refused_models[name]}")
    raise CannotSplit(f"{type(model).__name__} has no plan for its tokens yet.")
