"""Attention that also gives its log-sum-exp, and how partial results merge.

A ring needs the true log-sum-exp of the scores; kernels that do not return it are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp.

    q is (batch, heads, queries, dim), k and v (batch, heads, keys, dim); mask, if any, is additive
    or boolean (True: attend) and broadcasts to (batch, heads, queries, keys). ``scale`` defaults
    to 1/sqrt(dim). Returns the output (batch, heads, queries, dim) and the log-sum-exp (batch,
    heads, queries), both in float32.
    """
    if 0 in (*q.shape, k.shape[-2]):
        return _nothing(q, v)
    bias = None if mask is None else _as_bias(mask, q.dtype)
    out, lse = _kernel(q)(q, k, v, bias, scale)
    return out.float(), lse.float()[..., : q.shape[-2]]


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two attention results over disjoint keys as one over all of them, in float32.

    After Liu et al., Ring Attention with Blockwise Transformers (arXiv:2310.01889).
    """
    total = torch.logaddexp(lse, more_lse)
    safe = _finite(total)
    left, right = (lse - safe).exp_().unsqueeze(-1), (more_lse - safe).exp_().unsqueeze(-1)
    return out * left + more * right, total


def _kernel(q: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    if q.device.type == "cpu":
        return _flash_cpu
    return _efficient_cuda if q.device.type == "cuda" else _plain


def _flash_cpu(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    name = "_scaled_dot_product_flash_attention_for_cpu"
    out, lse = getattr(torch.ops.aten, name)(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    if bias is not None:  # where nothing is attended, the kernel says 0
        lse = lse.masked_fill((bias == -math.inf).all(-1), -math.inf)
    return out, lse


def _efficient_cuda(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    if bias is not None:  # its bias must be aligned in memory: ours is of any length
        return _plain(q, k, v, bias, scale)
    half = q.dtype in (torch.float16, torch.bfloat16)
    if half:
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    else:
        name = "_scaled_dot_product_efficient_attention"
        found = getattr(torch.ops.aten, name)(q, k, v, None, True, scale=scale)
    return found[0], found[1]


#: Rows of scores that exist at a time, so that memory grows with the keys alone.
_ROWS = 512


def _plain(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = q.float() * scale, k.float().transpose(-1, -2), v.float()
    outs, lses = [], []
    for start in range(0, q.shape[-2], _ROWS):
        scores = q[..., start : start + _ROWS, :] @ k
        if bias is not None:
            scores += bias if bias.shape[-2] == 1 else bias[..., start : start + _ROWS, :]
        lse = scores.logsumexp(-1)
        outs.append((scores - _finite(lse).unsqueeze(-1)).exp_() @ v)
        lses.append(lse)
    return torch.cat(outs, -2), torch.cat(lses, -1)


def _nothing(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.zeros((*q.shape[:-1], v.shape[-1]), device=q.device)
    return out, torch.full(q.shape[:-1], -math.inf, device=q.device)


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


def _finite(lse: Tensor) -> Tensor:
    """Where nothing is attended the log-sum-exp is minus infinity, which cannot be subtracted."""
    return lse.masked_fill(lse == -math.inf, 0.0)
