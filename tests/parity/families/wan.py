"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise

SMALL = {"dim": 48, "num_heads": 4, "num_layers": 2, "ffn_dim": 64, "text_dim": 24, "freq_dim": 16}


def t2v(**options: Any) -> nn.Module:
    from comfy.ldm.wan.model import WanModel

    return make(WanModel, **{**SMALL, **options})


def call(t: int = 3, h: int = 6, w: int = 10, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    x = noise(batch, 16, t, h, w)
    timestep = torch.linspace(300.0, 700.0, batch)
    return Call(
        (x, timestep, noise(batch, text, 24, seed=2)), {"transformer_options": {}, **kwargs}
    )


def per_frame() -> Call:
    whole = call(t=3, batch=2)
    timestep = torch.tensor([[0.0, 500.0, 500.0], [0.0, 300.0, 300.0]])
    return Call((whole.args[0], timestep, whole.args[2]), whole.kwargs)


CASES = (
    Case("wan", "t2v", t2v, call),
    Case("wan", "t2v, odd size, batch 2", t2v, lambda: call(t=1, h=5, w=7, batch=2)),
    Case("wan", "t2v, 3 heads", lambda: t2v(num_heads=3), call),
    Case("wan", "2.2 5B, timestep per frame", t2v, per_frame),
)
