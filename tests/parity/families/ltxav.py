"""LTX-2: picture and sound, which look at each other; only newer versions of ComfyUI have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise


def ltxav(heads: int = 4, **options: Any) -> nn.Module:
    module = pytest.importorskip("comfy.ldm.lightricks.av_model")
    sizes = {
        "in_channels": 8, "cross_attention_dim": 16 * heads, "attention_head_dim": 16,
        "num_attention_heads": heads, "audio_cross_attention_dim": 8 * heads,
        "audio_attention_head_dim": 8, "audio_num_attention_heads": heads, "caption_channels": 20,
        "num_layers": 2, "connector_attention_head_dim": 4, "connector_num_attention_heads": 2,
        "connector_num_layers": 1,
    }  # fmt: skip
    return make(module.LTXAVModel, **sizes, **options)


def call(
    t: int = 3,
    h: int = 3,
    w: int = 5,
    batch: int = 1,
    text: int = 7,
    sound: int = 11,
    mask: Tensor | None = None,
    times: Tensor | None = None,
    **kwargs: Any,
) -> Call:
    """``times``: timesteps of the video's tokens, as shares of those of its batch."""
    timestep = torch.linspace(0.3, 0.7, batch)
    x = [noise(batch, 8, t, h, w)]
    x += [noise(batch, 8, sound, 16, seed=4)] if sound else []
    video = timestep if times is None else timestep[:, None, None] * times
    arguments = (x, video, noise(batch, text, 40, seed=2), mask)
    options = {"frame_rate": 25, "transformer_options": {}, "a_timestep": timestep}
    return Call(arguments, {**options, **kwargs})


def per_frame(*shares: float) -> dict[str, Tensor]:
    """Each frame of 15 tokens has its share of the noise."""
    times = torch.tensor(shares)
    whole = times[None, None, :, None, None].expand(1, 1, len(shares), 3, 5)
    return {"times": times.repeat_interleave(15)[None, :, None], "denoise_mask": whole}


def per_token() -> dict[str, Tensor]:
    times = torch.rand(45, generator=torch.Generator().manual_seed(3))
    return {"times": times[None, :, None], "denoise_mask": times.reshape(1, 1, 3, 3, 5)}


def keyframes() -> Call:
    """The last frame of four is of another place, and the third is left out."""
    places = torch.arange(90).reshape(1, 3, 30)
    shares = per_frame(1.0, 1.0, -1.0, 0.5)
    return call(t=4, keyframe_idxs=torch.stack([places, places + 1], -1), **shares)


CASES = (
    Case("ltxav", "picture and sound", ltxav, call),
    Case(
        "ltxav",
        "3 heads, batch 2, timestep per frame",
        lambda: ltxav(heads=3),
        lambda: call(batch=2, text=5, **per_frame(0.0, 1.0, 0.5)),
    ),
    Case("ltxav", "timestep per token", ltxav, lambda: call(batch=2, sound=10, **per_token())),
    Case("ltxav", "keyframes", ltxav, keyframes),
    Case(
        "ltxav",
        "gated, modulated text, split positions",
        lambda: ltxav(
            apply_gated_attention=True,
            cross_attention_adaln=True,
            rope_type="split",
            use_middle_indices_grid=True,
        ),
        lambda: call(w=7, mask=torch.tensor([[1, 1, 1, 1, 1, 0, 0]])),
    ),
    Case(
        "ltxav",
        "sound to go on from",
        ltxav,
        lambda: call(batch=2, ref_audio={"tokens": noise(1, 4, 128, seed=5)}),
    ),
    Case("ltxav", "one token of sound and of text", ltxav, lambda: call(text=1, sound=1)),
    Case("ltxav", "without sound", ltxav, lambda: call(sound=0)),
)
