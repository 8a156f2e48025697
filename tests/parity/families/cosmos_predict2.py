"""Cosmos Predict2, for images and for videos, and Anima."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, noise

SMALL = {
    "max_img_h": 32, "max_img_w": 32, "max_frames": 8, "in_channels": 4, "out_channels": 4,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 2, "num_heads": 4,
    "crossattn_emb_channels": 20, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
    "adaln_lora_dim": 8, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip


def cosmos(**options: Any) -> nn.Module:
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    return make(MiniTrainDIT, **{**SMALL, **options})


def anima() -> nn.Module:
    model = pytest.importorskip("comfy.ldm.anima.model")

    def build(**options: Any) -> nn.Module:
        found = model.Anima(**options)
        found.llm_adapter = nn.Identity()  # large; it makes the text before the forward
        return found

    return make(build, **SMALL)


def call(
    t: int = 3,
    h: int = 6,
    w: int = 10,
    batch: int = 1,
    text: int = 7,
    timestep: Tensor | None = None,
    **kwargs: Any,
) -> Call:
    x = noise(batch, 4, t, h, w)
    timestep = torch.linspace(0.3, 0.7, batch) if timestep is None else timestep
    text_tokens = noise(batch, text, 20, seed=2)
    return Call((x, timestep, text_tokens), {"transformer_options": {}, **kwargs})


def per_frame(batch: int, t: int) -> Tensor:
    found = torch.linspace(0.3, 0.7, batch)[:, None].repeat(1, t)
    found[:, 0] = 0.0
    return found


CASES = (
    Case("cosmos_predict2", "video", cosmos, call),
    Case(
        "cosmos_predict2",
        "image, odd rows, batch 2, padding",
        cosmos,
        lambda: call(t=1, h=6, w=14, batch=2, text=5, padding_mask=noise(2, 1, 12, 28)),
    ),
    Case("cosmos_predict2", "3 heads", lambda: cosmos(model_channels=48, num_heads=3), call),
    Case("cosmos_predict2", "one word of text", cosmos, lambda: call(text=1)),
    Case(
        "cosmos_predict2",
        "timestep per frame, batch 2",
        cosmos,
        lambda: call(t=5, batch=2, timestep=per_frame(2, 5)),
    ),
    Case(
        "cosmos_predict2",
        "timestep per frame, without adaln lora, with fps",
        lambda: cosmos(use_adaln_lora=False, rope_enable_fps_modulation=True),
        lambda: call(t=2, timestep=per_frame(1, 2), fps=torch.tensor([16.0])),
    ),
    Case("cosmos_predict2", "Anima", anima, lambda: call(t=1, h=10, batch=2, text=3)),
)
