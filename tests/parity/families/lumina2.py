"""Lumina 2 (grouped keys), and NewBie (its class with pooled text)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, needs, noise


def lumina(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.lumina.model import NextDiT

    needs(NextDiT, *options)
    parameters = {
        "in_channels": 4, "dim": 16 * heads, "n_layers": 2, "n_refiner_layers": 2,
        "n_heads": heads, "n_kv_heads": heads // 2 or 1, "multiple_of": 16, "qk_norm": True,
        "cap_feat_dim": 20, "axes_dims": [4, 6, 6],
    }  # fmt: skip
    return make(NextDiT, **{**parameters, **options})


def call(h: int = 8, w: int = 10, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    x, timestep = noise(batch, 4, h, w), torch.linspace(0.3, 0.7, batch)
    return Call(
        (x, timestep, noise(batch, text, 20, seed=2), text),
        {"transformer_options": {}, **kwargs},
    )


def mask(text: int) -> Tensor:
    found = torch.zeros(1, text)
    found[:, -2:] = -1e4
    return found


CASES = (
    Case("lumina2", "plain", lumina, call),
    Case("lumina2", "odd size, batch 2", lumina, lambda: call(h=7, w=9, batch=2, text=5)),
    Case("lumina2", "3 heads, one of keys", lambda: lumina(heads=3), call),
    Case("lumina2", "one word of text", lumina, lambda: call(text=1)),
    Case("lumina2", "masked text", lumina, lambda: call(attention_mask=mask(7))),
    Case(
        "lumina2",
        "NewBie",
        lambda: lumina(clip_text_dim=12),
        lambda: call(batch=2, clip_text_pooled=noise(2, 12, seed=3)),
    ),
)
