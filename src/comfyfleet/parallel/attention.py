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
            head_dim = q.shape[2:].numel() // heads
            q, k, v = (x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2) for x in (q, k, v))
        options["attn_precision"] = attn_precision
        return cls(q, k, v, _with_four_dims(mask), skip_output_reshape, options)


def _with_four_dims(mask: Tensor | None) -> Tensor | None:
    """(queries, keys), (batch, queries, keys) or (batch, heads, queries, keys) as the last."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


def sequence_attention(
    mesh: SequenceMesh, joint: Joint, keys: Joint, kernel: Kernel, request: Request
) -> Tensor:
    """Attention of the local tokens over the tokens of all ranks.

    ``joint`` is the layout over the sequence group of the tokens that ask, ``keys`` of those that
    are asked. Returns (batch, local tokens, heads * dim), or (batch, heads, local tokens, dim)
    where the request asked for heads apart.
    """
    _check(joint, keys, mesh, request)
    _check_mask(request, joint.length, keys.length)
    heads, head_dim = request.q.shape[1], request.v.shape[3]
    groups = largest_remainder(request.k.shape[1], mesh.head_weights)
    widths = [heads // request.k.shape[1] * count for count in groups]
    block = joint.of_ranks(mesh.shards_of_block(mesh.block))
    q, k, v = _gather(mesh, request, groups, block, keys)
    mask = _mask_of_heads(request.mask, widths, mesh.ulysses.index)
    out = _attend(mesh, joint, keys, kernel, request, q, k, v, mask)
    out = gather_heads(mesh.ulysses, out, [count * head_dim for count in widths], block)
    if request.heads_apart:
        return out.view(*out.shape[:2], heads, head_dim).transpose(1, 2)
    return out


def _gather(
    mesh: SequenceMesh, request: Request, groups: Sequence[int], block: Joint, keys: Joint
) -> list[Tensor]:
    """Queries, keys and values of all tokens of this block and this rank's heads."""
    key_block = keys.of_ranks(mesh.shards_of_block(mesh.block))
    if key_block == block:
        return gather_tokens(mesh.ulysses, [request.q, request.k, request.v], groups, block)
    queries = gather_tokens(mesh.ulysses, [request.q], groups, block)
    return queries + gather_tokens(mesh.ulysses, [request.k, request.v], groups, key_block)


def _attend(
    mesh: SequenceMesh,
    joint: Joint,
    keys: Joint,
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
    places = [_keys_of(mesh, keys, i) for i in range(mesh.dims.ring)]
    if len(places[mesh.block]) < k.shape[2]:
        rows = keys.of_ranks(mesh.shards_of_block(mesh.block)).rows(split_only=True).to(k.device)
        k, v = k.index_select(2, rows), v.index_select(2, rows)
    if request.options.get("attn_precision") == torch.float32:
        q, k, v = q.float(), k.float(), v.float()
    sizes, scale = [len(found) for found in places], request.options.get("scale")
    out = ring_attention(mesh.ring, q, k, v, sizes, _masks(mesh, joint, places, mask), scale)
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


def _check(joint: Joint, keys: Joint, mesh: SequenceMesh, request: Request) -> None:
    found, split = (request.q.shape[2], request.k.shape[2]), (joint, keys)
    if found != (local := tuple(layout.local(mesh.index) for layout in split)):
        raise CannotSplit(
            f"attention got {found} queries and keys on this rank where the split has {local}; "
            f"this model's forward differs from its plan."
        )
    unknown = set(request.options) - _HARMLESS - {"scale"}
    if mesh.dims.ring > 1 and unknown:
        raise CannotSplit(f"a ring cannot honour the attention option(s) {sorted(unknown)}.")


def _check_mask(request: Request, num_queries: int, num_keys: int) -> None:
    """The mask must be that of all tokens: this rank takes its part of it."""
    if request.mask is None:
        return
    found, whole = tuple(request.mask.shape), (*request.q.shape[:2], num_queries, num_keys)
    if any(size not in (1, wanted) for size, wanted in zip(found, whole, strict=True)):
        raise CannotSplit(
            f"attention got a mask of shape {found}; one for all tokens has {whole}, or 1 in "
            f"place of any of these."
        )
