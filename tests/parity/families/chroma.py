"""Chroma and Chroma Radiance."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, known, make, needs, noise
from tests.parity.families.flux import mask, residuals

KINDS = ("input", "output")


def parameters(heads: int) -> dict[str, Any]:
    return {
        "in_channels": 16, "out_channels": 16, "context_in_dim": 20, "hidden_size": 16 * heads,
        "mlp_ratio": 2.0, "num_heads": heads, "depth": 2, "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "qkv_bias": True, "in_dim": 64,
        "out_dim": 16 * heads, "hidden_dim": 24, "n_layers": 2, "txt_ids_dims": [],
        "vec_in_dim": None,
    }  # fmt: skip


def chroma(heads: int = 4) -> nn.Module:
    from comfy.ldm.chroma.model import Chroma, ChromaParams

    return make(Chroma, **known(ChromaParams, **parameters(heads)))


def radiance(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.chroma_radiance.model import ChromaRadiance, ChromaRadianceParams

    needs(ChromaRadianceParams, *options)
    nerf = {
        "in_channels": 3, "out_channels": 3, "nerf_hidden_size": 8, "nerf_mlp_ratio": 2,
        "nerf_depth": 2, "nerf_max_freqs": 2, "nerf_tile_size": 12, "nerf_final_head_type": "conv",
        "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False,
    }  # fmt: skip
    chosen = known(ChromaRadianceParams, **{**parameters(heads), **nerf, **options})
    return make(ChromaRadiance, **chosen)


def call(
    h: int = 8, w: int = 10, batch: int = 1, text: int = 7, channels: int = 4, **kwargs: Any
) -> Call:
    timestep, guidance = torch.linspace(0.3, 0.7, batch), torch.zeros(batch)
    context = noise(batch, text, 20, seed=2)
    return Call(
        (noise(batch, channels, h, w), timestep, context, guidance),
        {"transformer_options": {}, **kwargs},
    )


def pixels(**kwargs: Any) -> Call:
    return call(channels=3, **kwargs)


CASES = (
    Case("chroma", "plain", chroma, call),
    Case("chroma", "odd size, batch 2", chroma, lambda: call(h=7, w=9, batch=2, text=5)),
    Case("chroma", "3 heads", lambda: chroma(heads=3), call),
    Case("chroma", "one word of text", chroma, lambda: call(text=1)),
    Case("chroma", "masked text", chroma, lambda: call(attention_mask=mask(7, 20))),
    Case("chroma", "control residuals", chroma, lambda: call(control=residuals(20))),
    Case("chroma", "Radiance", radiance, pixels),
    Case("chroma", "Radiance, odd size, batch 2", radiance, lambda: pixels(h=7, w=9, batch=2)),
    Case("chroma", "Radiance, 3 heads", lambda: radiance(heads=3), pixels),
    Case("chroma", "Radiance, one word of text", radiance, lambda: pixels(text=1)),
    Case(
        "chroma",
        "Radiance, masked text",
        lambda: radiance(nerf_final_head_type="linear"),
        lambda: pixels(attention_mask=mask(7, 20)),
    ),
    Case(
        "chroma",
        "Radiance, x0 and text in sequence",
        lambda: radiance(use_x0=True, use_sequential_txt_ids=True),
        pixels,
    ),
    Case(
        "chroma",
        "Radiance, control residuals",
        radiance,
        lambda: pixels(control={kind: [noise(1, 20, 64, seed=6)] * 2 for kind in KINDS}),
    ),
)
