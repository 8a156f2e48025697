"""Qwen-Image, Edit with reference latents of every method, Layered, control residuals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, needs, noise


def qwen(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    needs(QwenImageTransformer2DModel, *options)
    return make(
        QwenImageTransformer2DModel, in_channels=16, out_channels=4, num_layers=3,
        attention_head_dim=16, num_attention_heads=heads, joint_attention_dim=20,
        axes_dims_rope=(4, 6, 6), **options,
    )  # fmt: skip


def edit_2511() -> nn.Module:
    return qwen(default_ref_method="index_timestep_zero")


def layered() -> nn.Module:
    return qwen(default_ref_method="negative_index", use_additional_t_cond=True)


def call(h: int = 8, w: int = 10, t: int = 1, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    x, timestep = noise(batch, 4, t, h, w), torch.linspace(0.3, 0.7, batch)
    arguments = (x, timestep, noise(batch, text, 20, seed=2))
    return Call(arguments, {"transformer_options": {}, **kwargs})


def edit(batch: int = 1, **kwargs: Any) -> Call:
    latents = [noise(1, 4, 1, 6, 6, seed=4), noise(1, 4, 1, 5, 8, seed=5)]
    return call(batch=batch, ref_latents=[x.repeat(batch, 1, 1, 1, 1) for x in latents], **kwargs)


def masked(*words: int) -> Tensor:
    """Which words count, for each image of the batch."""
    return torch.tensor([[1] * count + [0] * (max(words) + 1 - count) for count in words])


def control(tokens: int, batch: int = 1) -> dict[str, list[Tensor | None]]:
    first, last = noise(batch, tokens, 64, seed=6), noise(batch, tokens, 64, seed=7)
    return {"input": [first, None, last], "output": [], "middle": []}


CASES = (
    Case("qwen_image", "plain", qwen, call),
    Case("qwen_image", "odd size, batch 2", qwen, lambda: call(h=7, w=9, batch=2, text=5)),
    Case("qwen_image", "3 heads", lambda: qwen(heads=3), call),
    Case("qwen_image", "one word of text", qwen, lambda: call(text=1)),
    Case("qwen_image", "masked text", qwen, lambda: call(attention_mask=masked(6))),
    Case(
        "qwen_image",
        "masked text, batch 2",
        qwen,
        lambda: call(batch=2, text=6, attention_mask=masked(5, 3)),
    ),
    Case(
        "qwen_image",
        "masked text of three words",
        qwen,
        lambda: call(text=3, attention_mask=masked(2)),
    ),
    Case("qwen_image", "edit, index", qwen, lambda: edit(ref_latents_method="index")),
    Case("qwen_image", "edit, offset", qwen, lambda: edit(batch=2, ref_latents_method="offset")),
    Case(
        "qwen_image",
        "edit, negative index",
        lambda: qwen(default_ref_method="negative_index"),
        edit,
    ),
    Case("qwen_image", "edit 2511, timestep zero", edit_2511, edit),
    Case(
        "qwen_image",
        "edit 2511, timestep zero, batch 2, masked text",
        edit_2511,
        lambda: edit(batch=2, text=4, attention_mask=masked(3, 2)),
    ),
    Case(
        "qwen_image",
        "layered",
        layered,
        lambda: edit(t=3, additional_t_cond=torch.ones(1, dtype=torch.long)),
    ),
    Case("qwen_image", "control residuals", qwen, lambda: call(control=control(20))),
    Case(
        "qwen_image",
        "edit, residuals of the image only",
        qwen,
        lambda: edit(batch=2, control=control(20, batch=2)),
    ),
)
