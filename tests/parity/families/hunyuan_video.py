"""HunyuanVideo 1.0 and 1.5: text to video, both ways of image to video, control residuals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, known, make, noise


def hunyuan(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    parameters = {
        "in_channels": 4, "out_channels": 4, "vec_in_dim": 12, "context_in_dim": 20,
        "hidden_size": 16 * heads, "mlp_ratio": 2.0, "num_heads": heads, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 256, "patch_size": [1, 2, 2],
        "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
        "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }  # fmt: skip
    chosen = known(HunyuanVideoParams, **{**parameters, **options})
    return make(HunyuanVideo, **chosen)


def hunyuan_15(**options: Any) -> nn.Module:
    return hunyuan(**{
        "patch_size": [1, 1, 1], "vec_in_dim": None, "guidance_embed": False, "byt5": True,
        "depth": 3, "depth_single_blocks": 0, "use_cond_type_embedding": True, "vision_in_dim": 10,
        **options,
    })  # fmt: skip


def call(t: int = 3, h: int = 6, w: int = 10, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    x, timestep = noise(batch, 4, t, h, w), torch.linspace(300.0, 700.0, batch)
    conditions = {
        "y": noise(batch, 12, seed=3), "guidance": torch.full((batch,), 6.0),
        "transformer_options": {},
    }  # fmt: skip
    return Call((x, timestep, noise(batch, text, 20, seed=2)), {**conditions, **kwargs})


def call_15(batch: int = 1, glyphs: int = 5, **kwargs: Any) -> Call:
    x = {"t": 2, "h": 3, "w": 5, "batch": batch, "y": None, "guidance": None}
    return call(**{**x, "txt_byt5": noise(batch, glyphs, 1472, seed=4), **kwargs})


def image(**kwargs: Any) -> Call:
    return call_15(clip_fea=noise(1, 6, 10, seed=5), **kwargs)


def first_frame(**kwargs: Any) -> Call:
    return call(guiding_frame_index=torch.tensor([0.0]), **kwargs)


def reference() -> Tensor:
    return noise(1, 4, 1, 6, 10, seed=6)


def control(tokens: int, blocks: int = 2) -> dict[str, list[Tensor | None]]:
    return {"input": [noise(1, tokens, 64, seed=7 + i) for i in range(blocks)], "output": []}


def masked(text: int) -> Tensor:
    return torch.tensor([[1] * (text - 2) + [0, 0]])


CASES = (
    Case("hunyuan_video", "plain", hunyuan, call),
    Case(
        "hunyuan_video",
        "odd number of tokens, batch 2",
        hunyuan,
        lambda: call(t=1, batch=2, text=5),
    ),
    Case("hunyuan_video", "3 heads", lambda: hunyuan(heads=3), call),
    Case("hunyuan_video", "one word of text", hunyuan, lambda: call(text=1)),
    Case("hunyuan_video", "masked text", hunyuan, lambda: call(attention_mask=masked(7))),
    Case("hunyuan_video", "image to video, first frame", hunyuan, first_frame),
    Case(
        "hunyuan_video", "image to video, reference", hunyuan, lambda: call(ref_latent=reference())
    ),
    Case(
        "hunyuan_video",
        "image to video, first frame and reference, masked text",
        hunyuan,
        lambda: first_frame(ref_latent=reference(), attention_mask=masked(7)),
    ),
    Case("hunyuan_video", "control residuals", hunyuan, lambda: call(control=control(45))),
    Case("hunyuan_video", "1.5", hunyuan_15, call_15),
    Case("hunyuan_video", "1.5, batch 2", hunyuan_15, lambda: call_15(batch=2, text=5)),
    Case("hunyuan_video", "1.5, 3 heads", lambda: hunyuan_15(heads=3), call_15),
    Case("hunyuan_video", "1.5, one glyph", hunyuan_15, lambda: call_15(glyphs=1, text=1)),
    Case("hunyuan_video", "1.5, image to video", hunyuan_15, image),
    Case(
        "hunyuan_video",
        "1.5, control residuals",
        hunyuan_15,
        lambda: call_15(control=control(30, blocks=3)),
    ),
)
