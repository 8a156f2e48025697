"""Nodes for the benchmarks of tiles: a sampling of a known cost, a VAE, an upscaler, a digest."""

from __future__ import annotations

import hashlib
from typing import Any

import comfy.ops
import comfy.patcher_extension
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import nn

#: The VAE of SD and Flux at a quarter of its width: an eighth of the work and more.
_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class BenchSampling:
    """A model each of whose samplings costs so many products of matrices more, in one thread."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "amount": ("INT", {"max": 1_000_000})}}

    def make(self, model: Any, amount: int) -> tuple[Any]:
        def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
            matrix = torch.full((512, 512), 1 / 512)
            for _ in range(amount):
                matrix = matrix @ matrix
            return executor(*args, **kwargs)

        clone = model.clone()
        kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        clone.add_wrapper_with_key(kind, "bench", sample)
        return (clone,)


class BenchVAE:
    """A VAE of random weights, the same everywhere, and a latent for it."""

    RETURN_TYPES = ("VAE", "LATENT")
    FUNCTION = "make"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {"max": 2**62})
        return {"required": {"side": number, "seed": number}}

    def make(self, side: int, seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
        torch.manual_seed(1)
        with torch.inference_mode(False):
            parts = {"ddconfig": _VAE, "embed_dim": 4}
            weights = _weights(AutoencoderKL(**parts))
            vae = comfy.sd.VAE(sd=weights, config={"params": parts})
        generator = torch.Generator().manual_seed(seed)
        return vae, {"samples": torch.randn(1, 4, side // 8, side // 8, generator=generator)}


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, weight in model.state_dict().items():
        if weight.ndim > 1:
            found[name] = torch.randn(weight.shape) * weight[0].numel() ** -0.5
        else:
            # What is not set is whatever was in memory.
            norm = name.endswith("weight")
            found[name] = torch.ones_like(weight) if norm else torch.zeros_like(weight)
    return found


class BenchUpscaler:
    """An upscale model that doubles pixels: it costs next to nothing."""

    RETURN_TYPES = ("UPSCALE_MODEL",)
    FUNCTION = "make"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        return (_Doubler(),)


class _Doubler:
    scale = 2

    def __init__(self) -> None:
        self.model = nn.Conv2d(3, 3, 1)

    def to(self, device: Any) -> None:
        self.model.to(device)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(pixels, scale_factor=2.0, mode="nearest")


class BenchDigest:
    """What a picture is, told in a few letters: to compare it without saving it."""

    RETURN_TYPES = ()
    FUNCTION = "tell"
    OUTPUT_NODE = True
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def tell(self, image: torch.Tensor) -> dict[str, Any]:
        data = image.cpu().contiguous().numpy().data
        return {"ui": {"digest": [hashlib.sha256(data).hexdigest()]}}


NODES = {each.__name__: each for each in (BenchSampling, BenchVAE, BenchUpscaler, BenchDigest)}
