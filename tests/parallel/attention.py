"""ComfyUI's ``optimized_attention`` for toys: its signature, its override, torch's kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OVERRIDE = "optimized_attention_override"


def optimized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Attention as ComfyUI's models call it."""
    given = {"mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape}
    options = kwargs.get("transformer_options") or {}
    if OVERRIDE in options and not kwargs.get("_inside_attn_wrapper"):
        given |= {"skip_output_reshape": skip_output_reshape, "_inside_attn_wrapper": True}
        return options[OVERRIDE](optimized_attention, q, k, v, heads, **given, **kwargs)
    if not skip_reshape:
        q, k, v = (x.unflatten(2, (-1, q.shape[2] // heads)).transpose(1, 2) for x in (q, k, v))
    out = plain(q, k, v, mask, kwargs.get("scale"))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """torch's attention of (batch, heads, tokens, dim); keys may have less heads."""
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    if not k.shape[2]:
        return torch.zeros_like(q)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
