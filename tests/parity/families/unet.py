"""SD 1.5 and SDXL: no tokens to split, conditionings and batches all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise

SMALL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "num_head_channels": 16,
    "use_spatial_transformer": True, "transformer_depth": [1, 1], "context_dim": 24,
    "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
}  # fmt: skip


def unet(**options: Any) -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return make(UNetModel, **{**SMALL, **options})


def sdxl() -> nn.Module:
    return unet(num_classes="sequential", adm_in_channels=12)


def call(batch: int = 3, **kwargs: Any) -> Call:
    x, context = noise(batch, 4, 16, 12), noise(batch, 7, 24, seed=2)
    timestep = torch.linspace(200.0, 700.0, batch)
    return Call((x, timestep, context), {"transformer_options": {}, **kwargs})


def controlled(batch: int = 2) -> Call:
    middle = [noise(batch, 64, 8, 6, seed=5)]
    return call(batch, control={"middle": middle, "input": [], "output": []})


CASES = (
    Case("sd15", "batch 3", unet, call, splits=()),
    Case("sd15", "one picture", unet, lambda: call(1), splits=()),
    Case("sd15", "control residuals, batch 2", unet, controlled, splits=()),
    Case("sdxl", "batch 2", sdxl, lambda: call(2, y=noise(2, 12, seed=3)), splits=()),
)
