"""Stable Diffusion 3 and 3.5, with control residuals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise


def sd3(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    width = 64 * heads
    text = {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": width}}
    sizes = {
        "input_size": None, "in_channels": 4, "depth": heads, "num_blocks": 3, "mlp_ratio": 2.0,
        "adm_in_channels": 12, "context_embedder_config": text, "pos_embed_max_size": 8,
        "num_patches": 64,
    }  # fmt: skip
    model = make(OpenAISignatureMMDITWrapper, **sizes, **options)
    model.pos_embed.copy_(noise(1, 64, width, seed=7))
    return model


def call(h: int = 8, w: int = 10, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    timestep = torch.linspace(300.0, 700.0, batch)
    arguments = (noise(batch, 4, h, w), timestep, noise(batch, text, 24, seed=2))
    return Call(arguments, {"y": noise(batch, 12, seed=3), "transformer_options": {}, **kwargs})


def residuals(tokens: int) -> dict[str, list[Tensor | None]]:
    return {"output": [noise(1, tokens, 256, seed=5), None, noise(1, tokens, 256, seed=6)]}


CASES = (
    Case("sd3", "3", sd3, call),
    Case(
        "sd3",
        "3.5 large, odd size, batch 2",
        lambda: sd3(qk_norm="rms"),
        lambda: call(h=7, w=9, batch=2, text=5),
    ),
    Case(
        "sd3",
        "3.5 medium, batch 2",
        lambda: sd3(qk_norm="rms", x_block_self_attn_layers=[0, 1]),
        lambda: call(batch=2),
    ),
    Case(
        "sd3",
        "3.5 medium, 3 heads, one word of text",
        lambda: sd3(heads=3, qk_norm="rms", x_block_self_attn_layers=[0]),
        lambda: call(h=7, w=9, text=1),
    ),
    Case("sd3", "control residuals", sd3, lambda: call(control=residuals(20))),
    Case(
        "sd3",
        "text refined first, control residuals, batch 2",
        lambda: sd3(context_processor_layers=1, context_size=24, qk_norm="rms"),
        lambda: call(batch=2, control=residuals(20)),
    ),
)
