"""Test nodes: seeded inputs, patches of models, faults. Opening the pack turns on previews."""

from __future__ import annotations

import os
import time
from pathlib import Path

import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args

from . import patience  # noqa: F401  # it adds a route
from .patches import Patched
from .traps import Trap
from .vaes import Vae, VaeWork

#: In ComfyUI's folder.
CLOSED = "closed"

if args.preview_method is LatentPreviewMethod.NoPreviews:  # the command line wins
    args.preview_method = LatentPreviewMethod.Latent2RGB


def wait_outside() -> None:
    """A worker that is started while a file says so comes when that is gone."""
    while os.environ.get("COMFYFLEET_WORKER") and Path(folder_paths.base_path, CLOSED).exists():
        time.sleep(0.05)


wait_outside()
SEED = ("INT", {"default": 0, "min": 0, "max": 2**31})


def count(default: int, least: int = 1) -> tuple[str, dict[str, int]]:
    return ("INT", {"default": default, "min": least, "max": 2**20})


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Conditioning:
    """A CONDITIONING of seeded normal values, as a text encoder would give."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        required = {"seed": SEED, "tokens": count(7), "dim": count(64)}
        # pooled: length of the pooled vector, 0 for none. masked: so many of the last tokens are
        # padding; -1 gives no mask at all, which is not the same as a mask of ones.
        optional = {"pooled": count(0, 0), "masked": count(-1, -1)}
        return {"required": required, "optional": optional}

    def make(self, seed: int, tokens: int, dim: int, pooled: int = 0, masked: int = -1):
        extra = {}
        if pooled:
            extra["pooled_output"] = noise(seed + 1, 1, pooled)
        if masked >= 0:
            extra["attention_mask"] = (torch.arange(tokens) < tokens - masked).long()[None]
        return ([[noise(seed, 1, tokens, dim), extra]],)


class Picture:
    """An IMAGE of coarse seeded squares: it differs from place to place."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": SEED, "width": count(128), "height": count(128)}}

    def make(self, seed: int, width: int, height: int):
        coarse = noise(seed, 1, 3, (height + 15) // 16, (width + 15) // 16).sigmoid()
        fine = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)
        return (fine[:, :, :height, :width].movedim(1, -1).contiguous(),)


NODE_CLASS_MAPPINGS = {
    "TestConditioning": Conditioning,
    "TestPicture": Picture,
    "TestPatch": Patched,
    "TestTrap": Trap,
    "TestVAE": Vae,
    "TestVAEWork": VaeWork,
}
