"""A small VAE with random weights, which fails on command, and a node that decodes and encodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import torch

from .traps import Watch

SIZES = {"z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
LAYERS = {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}


def weights() -> dict[str, torch.Tensor]:
    """They keep activations near 1."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    generator, made = torch.Generator().manual_seed(7), {}
    model = AutoencoderKL(ddconfig={**SIZES, **LAYERS, "double_z": True}, embed_dim=4)
    for name, weight in model.state_dict().items():
        value = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            made[name] = value * weight[0].numel() ** -0.5
        else:
            made[name] = 0.1 * value + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return made


class Vae:
    """A VAE. A process that is named in the file ``order`` fails in the middle of a forward."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"order": ("STRING", {}), "video": ("BOOLEAN", {"default": False})}}

    def make(self, order: str, video: bool):
        trap(Path(order))
        params = {"ddconfig": {**SIZES, **LAYERS, "double_z": True}, "embed_dim": 4}
        vae = comfy.sd.VAE(sd=weights(), config={"params": params})
        if video:  # it has what is not known to be exact
            vae.first_stage_model.other = torch.nn.Conv3d(1, 1, 1)
        return (vae,)


def trap(order: Path) -> None:
    """Look for an order at each norm that this process computes with others."""
    from comfyfleet.parallel.strips import Strips

    if hasattr(Strips, "watched"):
        return
    original, called = Strips.normalized, Watch(order, "last")

    def normalized(self: Any, x: torch.Tensor, *args: Any) -> Any:
        called((x,))
        return original(self, x, *args)

    Strips.watched, Strips.normalized = True, normalized


class VaeWork:
    """What our functions make of a latent or a picture, as a latent so that no digit is lost."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "work"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        required = {
            "vae": ("VAE",),
            "method": (["decode", "encode"],),
            "exact": ("BOOLEAN", {}),
            "seed": ("INT", {}),
            "size": ("STRING", {}),
        }
        return {
            "required": required,
            "hidden": {"unique_id": "UNIQUE_ID", "dynprompt": "DYNPROMPT"},
        }

    def work(self, vae, method, exact, seed, size, unique_id, dynprompt):
        from comfyfleet.extension.gang import exact_vae

        batch, rows, columns = map(int, size.split(","))
        shape = (batch, 4, rows, columns) if method == "decode" else (batch, rows, columns, 3)
        value = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if exact:
            hidden = SimpleNamespace(unique_id=unique_id, dynprompt=dynprompt)
            return ({"samples": getattr(exact_vae, method)(hidden, vae, value)},)
        return ({"samples": getattr(vae, method)(value)},)
