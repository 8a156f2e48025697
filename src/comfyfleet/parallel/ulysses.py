"""Ulysses: trade a shard of the tokens with all heads for all tokens of some heads, and back.

After Jacobs et al., DeepSpeed Ulysses (arXiv:2309.14509), with uneven shards and any number of
heads: nothing is padded, so nothing needs a mask. q, k and v travel in one message. Of a stream
that is whole on every rank, each takes its heads from its own copy: it is neither sent nor
repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from comfyfleet.parallel.comm import Group
from comfyfleet.parallel.layout import Joint


def split_heads(tensors: Sequence[Tensor], groups: Sequence[int]) -> list[list[Tensor]]:
    """For each rank its heads of each tensor (batch, heads, tokens, dim).

    ``groups`` says how many key-value heads each rank gets; a tensor with n times as many heads
    (the queries of grouped-query attention) is split n times as wide.
    """
    num_groups = sum(groups)
    wide = [[tensor.shape[1] // num_groups * count for count in groups] for tensor in tensors]
    parts = [tensor.split(sizes, 1) for tensor, sizes in zip(tensors, wide, strict=True)]
    return [list(rank) for rank in zip(*parts, strict=True)]


def gather_tokens(
    group: Group, tensors: Sequence[Tensor], heads: Sequence[int], joint: Joint
) -> list[Tensor]:
    """Trade (batch, heads, local tokens, dim) for (batch, this rank's heads, all tokens, dim).

    ``heads`` is the number of key-value heads per rank, ``joint`` the layout over the group's
    ranks. The tokens come back in canonical order.
    """
    if len(group) == 1:
        return list(tensors)
    parts = split_heads(tensors, heads)
    mine, here, split = parts[group.index], group.index, joint.split()
    moving = [[joint.travelling(part, 2, here) for part in rank] for rank in parts]
    shapes = [
        [(*part.shape[:2], split.local(rank), part.shape[3]) for part in mine]
        for rank in range(len(group))
    ]
    data = torch.cat([part.reshape(-1) for rank in moving for part in rank])
    sizes = [sum(part.numel() for part in rank) for rank in moving]
    into = [sum(math.prod(shape) for shape in rank) for rank in shapes]
    received = group.all_to_all(data, sizes, into)
    pieces = iter(received.split([math.prod(shape) for rank in shapes for shape in rank]))
    shards = [[next(pieces).view(shape) for shape in rank] for rank in shapes]
    by_tensor = zip(zip(*shards, strict=True), mine, strict=True)
    return [joint.join(travelled, local, 2, here) for travelled, local in by_tensor]


def gather_heads(group: Group, out: Tensor, widths: Sequence[int], joint: Joint) -> Tensor:
    """Trade (batch, all tokens, this rank's width) for (batch, local tokens, whole width).

    ``widths[i]`` is the i-th rank's heads times their dim. Undoes ``gather_tokens``.
    """
    if len(group) == 1:
        return out
    batch, width = out.shape[0], out.shape[2]
    rows = [
        torch.cat([out.narrow(1, start, size) for start, size in joint.segments(rank)], 1)
        for rank in range(len(group))
    ]
    local = joint.local(group.index)
    data = torch.cat([part.reshape(-1) for part in rows])
    sizes = [batch * joint.local(rank) * width for rank in range(len(group))]
    into = [batch * local * other for other in widths]
    received = group.all_to_all(data, sizes, into).split(into)
    shards = [part.view(batch, local, it) for part, it in zip(received, widths, strict=True)]
    return torch.cat(shards, 2)
