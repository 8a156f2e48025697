"""AuraFlow."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise


def aura_flow(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.aura.mmdit import MMDiT

    sizes = {
        "dim": 16 * heads, "n_layers": 4, "n_double_layers": 2, "n_heads": heads,
        "global_conddim": 24, "cond_seq_dim": 20, "max_seq": 64,
    }  # fmt: skip
    return make(MMDiT, **{**sizes, **options})


def call(h: int = 8, w: int = 10, batch: int = 1, text: int = 7) -> Call:
    arguments = (
        noise(batch, 4, h, w),
        torch.linspace(0.3, 0.7, batch),
        noise(batch, text, 20, seed=2),
    )
    return Call(arguments, {"transformer_options": {}})


CASES = (
    Case("aura_flow", "plain", aura_flow, call),
    Case("aura_flow", "odd size, batch 2", aura_flow, lambda: call(h=7, w=9, batch=2, text=6)),
    Case("aura_flow", "3 heads", lambda: aura_flow(heads=3), call),
    Case("aura_flow", "one word of text", aura_flow, lambda: call(text=1)),
    Case("aura_flow", "larger than its positions", aura_flow, lambda: call(h=18, w=6)),
)
