"""LTX-Video: text and masks, timesteps per token, keyframes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, known, make, needs, noise


def ltxv(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.lightricks.model import LTXVModel

    sizes = {
        "in_channels": 8, "cross_attention_dim": 16 * heads, "attention_head_dim": 16,
        "num_attention_heads": heads, "caption_channels": 20, "num_layers": 2,
    }  # fmt: skip
    return make(LTXVModel, **sizes, **options)


def newer(**options: Any) -> nn.Module:
    """With options that only later models have."""
    from comfy.ldm.lightricks.model import LTXVModel

    needs(LTXVModel.__init__, "cross_attention_adaln")
    return ltxv(**options)


def call(
    t: int = 3,
    h: int = 3,
    w: int = 5,
    batch: int = 1,
    text: int = 7,
    mask: Tensor | None = None,
    timestep: Tensor | None = None,
    **kwargs: Any,
) -> Call:
    timestep = torch.linspace(0.3, 0.7, batch) if timestep is None else timestep
    arguments = (noise(batch, 8, t, h, w), timestep, noise(batch, text, 20, seed=2), mask)
    return Call(arguments, {"frame_rate": 25, "transformer_options": {}, **kwargs})


def mask(batch: int, text: int) -> Tensor:
    found = torch.ones(batch, text, dtype=torch.long)
    found[-1, -3:] = 0
    return found


def per_token(batch: int, tokens: int) -> Tensor:
    return torch.rand(batch, tokens, 1, generator=torch.Generator().manual_seed(3))


def keyframes() -> Call:
    """The last 15 tokens are of a frame elsewhere; this ComfyUI may leave some of them out."""
    from comfy.ldm.lightricks.model import LTXVModel

    places = torch.arange(45).reshape(1, 3, 15).repeat(2, 1, 1)
    left_out = torch.ones(2, 1, 3, 3, 5)
    left_out[:, :, 2, 0, :2] = -1.0
    extra = known(LTXVModel._forward, denoise_mask=left_out)
    places = torch.stack([places, places + 1], -1) if extra else places
    guides = [{"pre_filter_count": 15, "strength": 1.0}]
    shares = {"timestep": per_token(2, 45), "guide_attention_entries": guides}
    return call(batch=2, keyframe_idxs=places, **shares, **extra)


CASES = (
    Case("ltxv", "plain", ltxv, call),
    Case(
        "ltxv",
        "odd size, batch 2, masked text",
        ltxv,
        lambda: call(t=1, h=3, w=7, batch=2, text=5, mask=mask(2, 5)),
    ),
    Case("ltxv", "3 heads", lambda: ltxv(heads=3), call),
    Case("ltxv", "one word of text", ltxv, lambda: call(text=1, mask=torch.ones(1, 1).long())),
    Case("ltxv", "timestep per token", ltxv, lambda: call(batch=2, timestep=per_token(2, 45))),
    Case("ltxv", "keyframes", ltxv, keyframes),
    Case(
        "ltxv",
        "causal, split positions, modulated text",
        lambda: newer(
            causal_temporal_positioning=True,
            use_middle_indices_grid=True,
            cross_attention_adaln=True,
            rope_type="split",
        ),
        lambda: call(batch=2, timestep=per_token(2, 45), mask=mask(2, 7)),
    ),
)
