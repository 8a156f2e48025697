"""Attention over tokens that lie split over ranks: Ulysses inside, a ring outside (USP).

After Fang and Zhao, USP (arXiv:2405.07719). Stands in for ComfyUI's ``optimized_attention``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.layout import Joint
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.ring import ring_attention
from comfyfleet.parallel.ulysses import gather_heads, gather_tokens
from comfyfleet.split import largest_remainder

#: A kernel with the signature of ComfyUI's ``optimized_attention``.
Kernel = Callable[..., Tensor]
#: Options of that signature that a ring may ignore: they choose among kernels.
_HARMLESS = {
    "attn_precision", "transformer_options", "_inside_attn_wrapper", "low_precision_attention",
    "enable_gqa",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One call of ComfyUI's attention, with heads apart: tensors (batch, heads, tokens, dim)."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    heads_apart: bool
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **options: Any,
    ) -> Request:
        """Read the arguments as ComfyUI's attention functions declare them."""
        if not skip_reshape:
            q, k, v = (
                x.view(*x.shape[:2], heads * x.shape[2] // q.shape[2], -1).transpose(1, 2)
                for x in (q, k, v)
            )
        options["attn_precision"] = attn_precision
        return cls(q, k, v, _with_four_dims(mask), skip_output_reshape, options)


def _with_four_dims(mask: Tensor | None) -> Tensor | None:
    """(queries, keys), (batch, queries, keys) or (batch, heads, queries, keys) as the last."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


def sequence_attention(
    mesh: SequenceMesh, joint: Joint, kernel: Kernel, request: Request
) -> Tensor:
    """Attention of the local tokens over the tokens of all ranks.

    ``joint`` is the layout of the tokens over the sequence group. Returns (batch, local tokens,
    heads * dim), or (batch, heads, local tokens, dim) where the request asked for heads apart.
    """
    _check(joint, mesh, request)
    heads, head_dim = request.q.shape[1], request.v.shape[3]
    groups = largest_remainder(request.k.shape[1], mesh.head_weights)
    widths = [heads // request.k.shape[1] * count for count in groups]
    block = joint.of_ranks(mesh.shards_of_block(mesh.block))
    tensors = [request.q, request.k, request.v]
    q, k, v = gather_tokens(mesh.ulysses, tensors, groups, block)
    mask = _mask_of_heads(request.mask, widths, mesh.ulysses.index)
    out = _attend(mesh, joint, kernel, request, q, k, v, mask)
    out = gather_heads(mesh.ulysses, out, [count * head_dim for count in widths], block)
    if request.heads_apart:
        return out.view(*out.shape[:2], heads, head_dim).transpose(1, 2)
    return out


def _attend(
    mesh: SequenceMesh,
    joint: Joint,
    kernel: Kernel,
    request: Request,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> Tensor:
    if q.shape[1] == 0:  # more ranks than heads
        return q.new_empty(q.shape[0], q.shape[2], 0)
    if mesh.dims.ring == 1:
        return kernel(q, k, v, q.shape[1], mask=mask, skip_reshape=True, **request.options)
    keys = [_keys_of(mesh, joint, i) for i in range(mesh.dims.ring)]
    if len(keys[mesh.block]) < k.shape[2]:
        rows = joint.of_ranks(mesh.shards_of_block(mesh.block)).rows(split_only=True).to(k.device)
        k, v = k.index_select(2, rows), v.index_select(2, rows)
    if request.options.get("attn_precision") == torch.float32:
        q, k, v = q.float(), k.float(), v.float()
    sizes, scale = [len(found) for found in keys], request.options.get("scale")
    out = ring_attention(mesh.ring, q, k, v, sizes, _masks(mesh, joint, keys, mask), scale)
    return out.to(request.q.dtype).transpose(1, 2).flatten(2)


def _keys_of(mesh: SequenceMesh, joint: Joint, block: int) -> Tensor:
    """Canonical positions of the keys of a block; streams that all have count in the first."""
    return joint.positions(mesh.shards_of_block(block), split_only=block > 0)


def _masks(
    mesh: SequenceMesh, joint: Joint, keys: Sequence[Tensor], mask: Tensor | None
) -> Callable[[int], Tensor | None]:
    """The mask of this block's queries for the keys of each block."""

    def mask_of(block: int) -> Tensor | None:
        if mask is None:
            return None
        rows = joint.positions(mesh.shards_of_block(mesh.block), split_only=False)
        part = mask if mask.shape[-2] == 1 else mask.index_select(-2, rows.to(mask.device))
        return part if mask.shape[-1] == 1 else part.index_select(-1, keys[block].to(mask.device))

    return mask_of


def _mask_of_heads(mask: Tensor | None, widths: list[int], index: int) -> Tensor | None:
    if mask is None or mask.shape[1] == 1:
        return mask
    return mask.split(widths, 1)[index]


def _check(joint: Joint, mesh: SequenceMesh, request: Request) -> None:
    local = joint.local(mesh.index)
    if request.q.shape[2] != local or request.k.shape[2] != local:
        raise CannotSplit(
            f"attention got {request.q.shape[2]} queries and {request.k.shape[2]} keys on this "
            f"rank where the split has {local} tokens; this model's forward differs from its plan."
        )
    unknown = set(request.options) - _HARMLESS - {"scale"}
    if mesh.dims.ring > 1 and unknown:
        raise CannotSplit(f"a ring cannot honour the attention option(s) {sorted(unknown)}.")
