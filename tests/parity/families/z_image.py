"""Z-Image, Omni (reference images), and its pixel space variant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise
from tests.parity.families.lumina2 import call, lumina, mask

Z_IMAGE = {
    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 8, "rope_theta": 256.0,
    "ffn_dim_multiplier": 1.0, "dim": 256, "n_kv_heads": 4, "axes_dims": [16, 24, 24],
}  # fmt: skip


def z_image(**options: Any) -> nn.Module:
    return lumina(**{**Z_IMAGE, **options})


def three_heads() -> nn.Module:
    return z_image(heads=3, n_kv_heads=3, dim=264, axes_dims=[24, 32, 32])


def pixels(use_x0: bool = False) -> nn.Module:
    import comfy.ldm.lumina.model as lumina_model

    if not hasattr(lumina_model, "NextDiTPixelSpace"):
        pytest.skip("this ComfyUI does not know pixel space")
    return make(
        lumina_model.NextDiTPixelSpace, patch_size=4, in_channels=3, n_layers=2, n_heads=4,
        n_refiner_layers=1, multiple_of=16, qk_norm=True, cap_feat_dim=20, decoder_hidden_size=24,
        decoder_num_res_blocks=2, decoder_max_freqs=2, use_x0=use_x0, **Z_IMAGE,
    )  # fmt: skip


def pixel_call(h: int = 16, w: int = 20, batch: int = 1, **kwargs: Any) -> Call:
    whole = call(batch=batch, **kwargs)
    return Call((noise(batch, 3, h, w), *whole.args[1:]), whole.kwargs)


def omni(contexts: int, batch: int = 1, **kwargs: Any) -> Call:
    """Two reference images; a context more than images is one that stands behind all."""
    return call(
        batch=batch,
        ref_latents=[noise(1, 4, 6, 8, seed=4), noise(1, 4, 8, 4, seed=5)],
        ref_contexts=[noise(1, 3 + i, 20, seed=6 + i) for i in range(contexts)],
        **kwargs,
    )


def siglip() -> list[torch.Tensor]:
    return [noise(1, 3, 4, 12, seed=9)]


CASES = (
    Case("z_image", "plain", z_image, call),
    Case("z_image", "odd size, batch 2", z_image, lambda: call(h=7, w=9, batch=2, text=5)),
    Case("z_image", "3 heads", three_heads, call),
    Case("z_image", "one word of text", z_image, lambda: call(text=1)),
    Case("z_image", "no padding", lambda: z_image(pad_tokens_multiple=None), lambda: call(text=6)),
    Case(
        "z_image",
        "masked text",
        lambda: z_image(pad_tokens_multiple=None),
        lambda: call(attention_mask=mask(7)),
    ),
    Case("z_image", "omni", lambda: z_image(siglip_feat_dim=12), lambda: omni(2)),
    Case(
        "z_image",
        "omni with image features, a third context",
        lambda: z_image(siglip_feat_dim=12),
        lambda: omni(3, siglip_feats=siglip()),
    ),
    Case(
        "z_image", "omni, batch 2", lambda: z_image(siglip_feat_dim=None), lambda: omni(1, batch=2)
    ),
    Case("z_image", "pixel space", pixels, pixel_call),
    Case(
        "z_image",
        "pixel space, omni",
        pixels,
        lambda: pixel_call(ref_latents=[noise(1, 3, 8, 12, seed=4)]),
    ),
    Case(
        "z_image",
        "pixel space, batch 2",
        lambda: pixels(use_x0=True),
        lambda: pixel_call(15, 17, 2),
    ),
)
