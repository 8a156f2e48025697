"""HiDream I1 and E1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise


def hidream(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

    sizes = {
        "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 3,
        "attention_head_dim": 16, "num_attention_heads": heads, "caption_channels": [20, 24],
        "text_emb_dim": 12, "axes_dims_rope": (4, 6, 6), "max_resolution": (16, 16),
        "llama_layers": [0, 1, 2, 3, 3],
    }  # fmt: skip
    return make(HiDreamImageTransformer2DModel, **{**sizes, **options})


def call(
    h: int = 8, w: int = 10, batch: int = 1, text: int = 7, llama: int = 5, **kwargs: Any
) -> Call:
    arguments = (
        noise(batch, 4, h, w),
        torch.linspace(300.0, 700.0, batch),
        noise(batch, 12, seed=2),
        noise(batch, text, 20, seed=3),
        noise(batch, 4, llama, 24, seed=4),
    )
    return Call(arguments, {"transformer_options": {}, **kwargs})


CASES = (
    Case("hidream", "I1", hidream, call),
    Case(
        "hidream",
        "I1, odd size, batch 2",
        hidream,
        lambda: call(h=7, w=9, batch=2, text=5, llama=6),
    ),
    Case("hidream", "I1, 3 heads", lambda: hidream(heads=3), call),
    Case("hidream", "I1, one word of text", hidream, lambda: call(text=1, llama=1)),
    Case("hidream", "E1", hidream, lambda: call(image_cond=noise(1, 4, 8, 10, seed=5))),
    Case("hidream", "partly turned", lambda: hidream(axes_dims_rope=(2, 2, 4)), call),
)
