"""Shares put together again, in share order: one batch of images, one sound, one list of values.

A share is the list of what arrived at a collector's input there: one entry, or the entries of a
list output. Nothing here imports ComfyUI.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from comfyfleet.errors import RunError


def join_images(shares: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """All shares' images [B, H, W, C] as one batch, in memory of its own.

    Raises RunError naming the shares if sizes, channels or dtypes differ.
    """
    _same(shares, "images", _image_form, "Use the output images_list, or make all shares equal.")
    images = [image for share in shares for image in share]
    batch = sum(image.shape[0] for image in images)
    return torch.cat(images, out=_memory((batch, *images[0].shape[1:]), images[0].dtype))


def check_parts(shares: Sequence[Sequence[torch.Tensor]], items: Sequence[int | None]) -> None:
    """Raise RunError if a part of a slice did not give a picture for each of its items.

    Then the parts are not what the slice would have been. ``items``: None for what is no part.
    """
    for images, num in zip(shares, items, strict=True):
        found = sum(image.shape[0] for image in images)
        if num is not None and found != num:
            raise RunError(
                "no worker had the memory for a slice, and it was computed in smaller parts; but "
                f"{num} of its items gave {found} images, so its nodes need it whole. Set the "
                "Fleet Split's size to fewer items, or free memory on a worker."
            )


def list_images(shares: Sequence[Sequence[torch.Tensor]], batch: object) -> list[torch.Tensor]:
    """All shares' image batches, each as it is: slices of their joined batch if there is one."""
    images = [image for share in shares for image in share]
    if isinstance(batch, torch.Tensor):
        return list(batch.split([image.shape[0] for image in images]))
    return [image.clone() for image in images]


def join_audio(shares: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """All shares' sounds one after another in time: waveform [B, C, T] and sample_rate.

    Raises RunError naming the shares if sample rates, channels or batches differ.
    """
    _same(shares, "audio", _audio_form, "Make all shares equal, or collect them as value.")
    sounds = [sound for share in shares for sound in share]
    waveform = torch.cat([sound["waveform"] for sound in sounds], dim=-1)
    return {**sounds[0], "waveform": waveform}


def _memory(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised CPU tensor. numpy asks the kernel for huge pages and torch does not.

    The first write to 200 MB in small pages took four times as long as the copy itself.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).reshape(*shape)


def _same(shares: Sequence[Sequence[Any]], name: str, form_of: Any, remedy: str) -> None:
    forms: dict[str, list[int]] = {}
    for number, share in enumerate(shares):
        for item in share:
            forms.setdefault(form_of(item), []).append(number)
    if not forms:
        raise RunError(f"{name}: no share returned any.")
    if len(forms) > 1:
        found = "; ".join(f"{form} in share {_numbers(of)}" for form, of in forms.items())
        raise RunError(f"{name} differ between shares and cannot be one batch: {found}. {remedy}")


def _numbers(shares: Sequence[int]) -> str:
    return ", ".join(str(number) for number in sorted(set(shares)))


def _image_form(image: torch.Tensor) -> str:
    _, height, width, channels = image.shape
    return f"{width}x{height} with {channels} channels ({str(image.dtype).removeprefix('torch.')})"


def _audio_form(sound: dict[str, Any]) -> str:
    batch, channels, _ = sound["waveform"].shape
    return f"{batch} x {channels} channels at {sound['sample_rate']} Hz"
