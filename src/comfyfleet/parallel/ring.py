"""Ring attention: keys and values go round while each rank attends with its own queries.

After Liu et al. (arXiv:2310.01889), for uneven blocks: the next block is on its way while the
present one is attended to, and results are merged in float32 by their log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from comfyfleet.parallel.comm import Group
from comfyfleet.parallel.kernels import attend, merge

#: Block of keys -> the mask for this rank's queries and those keys, if there is one.
MaskOf = Callable[[int], Tensor | None]


def ring_attention(
    group: Group,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Sequence[int],
    mask_of: MaskOf,
    scale: float | None = None,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks of the group.

    q, k and v are (batch, heads, tokens, dim); ``sizes`` counts the tokens of each rank. Returns
    (batch, heads, tokens, dim) in q's dtype.
    """
    block = torch.stack([k, v])
    out, lse = None, None
    for step in range(len(group)):
        owner = (group.index - step) % len(group)
        coming = _pass_on(group, block, sizes, owner) if step < len(group) - 1 else None
        found = attend(q, *_for_each_head(q, block), mask_of(owner), scale)
        out, lse = found if out is None or lse is None else merge(out, lse, *found)
        block = block if coming is None else coming()
    assert out is not None
    return out.to(q.dtype)


def _pass_on(group: Group, block: Tensor, sizes: Sequence[int], owner: int) -> Callable[[], Tensor]:
    """Send the block to the next rank; what is returned waits for the one before it."""
    size = sizes[(owner - 1) % len(group)]
    shape = (*block.shape[:3], size, block.shape[4])
    here, num_ranks = group.index, len(group)
    finish = group.start_exchange(
        block.reshape(-1), (here + 1) % num_ranks, math.prod(shape), (here - 1) % num_ranks
    )
    return lambda: finish().view(shape)


def _for_each_head(q: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values repeated where several heads of the queries share them."""
    k, v = block.unbind()
    if k.shape[1] == q.shape[1]:
        return k, v
    repeats = q.shape[1] // k.shape[1]
    return k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
