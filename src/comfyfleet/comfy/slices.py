"""Batches item by item: images, masks, latents, sounds, and lists of anything.

A value is what arrives at an input: a list of one entry, or of the entries of a list output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def count_items(entries: Sequence[Any]) -> int:
    """How many items there are: the entries of a list, or else the batch of the only entry."""
    if len(entries) != 1:
        return len(entries)
    batch = _batch_of(entries[0])
    return 1 if batch is None else batch.shape[0]


def slice_items(entries: Sequence[Any], start: int, stop: int) -> list[Any]:
    """The items from ``start`` to before ``stop``, in the same form."""
    if len(entries) != 1:
        return list(entries[start:stop])
    value = entries[0]
    if _batch_of(value) is None:
        return [value]
    if isinstance(value, torch.Tensor):
        return [value[start:stop]]
    if "samples" in value:
        return [_slice_latent(value, start, stop)]
    return [{**value, "waveform": value["waveform"][start:stop]}]


def part_of(entries: Sequence[Any], slot: int, first: int, last: int) -> list[Any]:
    """What an output of a Fleet Split is for some items of the slice that it is for."""
    if slot == 0:
        return slice_items(entries, first, last)
    return [entries[0] + first] if slot == 1 else [last - first]


def _batch_of(value: Any) -> torch.Tensor | None:
    """The tensor whose first dimension counts the items; None for what is one item."""
    if isinstance(value, dict):
        value = value.get("samples", value.get("waveform"))
    # Nested samples are of several shapes; what is flat (a mask without a batch) is one item.
    is_batch = isinstance(value, torch.Tensor) and value.dim() >= 3 and not value.is_nested
    return value if is_batch else None


def _slice_latent(latent: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """A part of a latent whose noise is that of these items in the whole batch."""
    total = latent["samples"].shape[0]
    sliced = {**latent, "samples": latent["samples"][start:stop]}
    # ComfyUI draws the noise of each item by its number, if it is told the numbers.
    sliced["batch_index"] = list(latent.get("batch_index") or range(total))[start:stop]
    mask = latent.get("noise_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() >= 3 and mask.shape[0] > 1:
        # A shorter mask is repeated over the batch, as samplers do.
        numbers = torch.arange(start, stop) % mask.shape[0]
        sliced["noise_mask"] = mask[numbers]
    return sliced
