"""Pictures as a VAE gives them, for benchmarks of what carries them.

Their spectrum is that of photographs, amplitude over frequency (D. Field, "Relations between the
statistics of natural images and the response properties of cortical cells", 1987), with a grain of
one hundredth. ComfyUI computes a VAE in bfloat16 where the GPU can, else in float32; its numbers are
between -1 and 1, and ComfyUI makes float32 between 0 and 1 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]

#: How exact a VAE's numbers are.
CONTENTS = ("bfloat16", "float16", "float32")
_GRAIN = 0.01


def pictures(count: int, side: int, content: str) -> Array:
    """[count, side, side, 3] in float32, 0 to 1; always the same ones."""
    chance = np.random.default_rng(0)
    return np.stack([_picture(chance, side, content) for _ in range(count)])


def _picture(chance: np.random.Generator, side: int, content: str) -> Array:
    light = _field(chance, side)[..., None] * 0.2
    colors = np.stack([_field(chance, side) for _ in range(3)], -1) * 0.05
    values = 0.5 + light + colors + chance.normal(0, _GRAIN, (side, side, 3))
    rounded = _rounded(np.clip(values * 2 - 1, -1, 1).astype(np.float32), content)
    return np.clip((rounded + 1) / 2, 0, 1).astype(np.float32)


def _field(chance: np.random.Generator, side: int) -> np.ndarray[Any, Any]:
    """Mean 0, deviation 1."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.maximum(np.hypot(rows, columns), 1 / side)
    waves = np.fft.rfft2(chance.normal(size=(side, side))) / frequency
    waves[0, 0] = 0
    field = np.fft.irfft2(waves, s=(side, side))
    return field / field.std()


def _rounded(values: Array, content: str) -> Array:
    if content == "bfloat16":
        return ((values.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(
            np.float32
        )
    return values.astype(content).astype(np.float32)
