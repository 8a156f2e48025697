"""Flux: dev and schnell, Kontext, fill, control residuals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, known, make, noise


def flux(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.flux.model import Flux, FluxParams

    parameters = {
        "in_channels": 4, "out_channels": 4, "vec_in_dim": 12, "context_in_dim": 20,
        "hidden_size": 16 * heads, "mlp_ratio": 2.0, "num_heads": heads, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    }  # fmt: skip
    return make(Flux, **known(FluxParams, **{**parameters, **options}))


def call(h: int = 8, w: int = 10, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    x = noise(batch, 4, h, w)
    timestep = torch.linspace(0.3, 0.7, batch)
    guidance = torch.full((batch,), 3.5)
    arguments = (x, timestep, noise(batch, text, 20, seed=2), noise(batch, 12, seed=3), guidance)
    return Call(arguments, {"transformer_options": {}, **kwargs})


def residuals(tokens: int) -> dict[str, list[Tensor | None]]:
    made: list[Tensor | None] = [noise(1, tokens, 64, seed=5), None]
    return {"input": made, "output": [None, noise(1, tokens, 64, seed=6)]}


def mask(text: int, tokens: int) -> Tensor:
    found = torch.zeros(1, text + tokens, text + tokens)
    found[:, :, text - 2 : text] = -1e4
    return found


CASES = (
    Case("flux", "dev", flux, call),
    Case("flux", "odd size, batch 2", flux, lambda: call(h=7, w=9, batch=2, text=5)),
    Case("flux", "3 heads", lambda: flux(heads=3), call),
    Case("flux", "one word of text", flux, lambda: call(text=1)),
    Case("flux", "Kontext", flux, lambda: call(ref_latents=[noise(1, 4, 6, 6, seed=4)])),
    Case("flux", "control residuals", flux, lambda: call(control=residuals(20))),
    Case(
        "flux",
        "Kontext with residuals of the image only",
        flux,
        lambda: call(ref_latents=[noise(1, 4, 6, 6, seed=4)], control=residuals(20)),
    ),
    Case("flux", "masked text", flux, lambda: call(attention_mask=mask(7, 20))),
)
