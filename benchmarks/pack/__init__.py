"""A custom-node pack for the benchmarks: the measuring model, pictures, work and trouble.

Workers load it as any other pack, through ``extra_model_paths``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

# The pack is a link into a checkout.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks.pictures import pictures

from .tiles import NODES as TILE_NODES
from .work import WORKER, BenchPause, BenchWork, die_before_replies


class BenchModel:
    """WanModel of dim 512, 4 heads, 6 layers, ffn 2048, with seeded random weights."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "LATENT")
    FUNCTION = "make"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any, Any, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            patcher = comfy.model_patcher.ModelPatcher(
                _measuring_model(),
                load_device=comfy.model_management.get_torch_device(),
                offload_device=comfy.model_management.unet_offload_device(),
            )
            text = torch.randn(1, 64, 4096)
        latent = torch.zeros(1, 16, 5, 36, 40)
        return patcher, [[text, {}]], {"samples": latent}


def _measuring_model() -> Any:
    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 512,
            "num_heads": 4,
            "num_layers": 6,
            "ffn_dim": 2048,
            "patch_size": (1, 2, 2),
            "in_dim": 16,
            "out_dim": 16,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.WAN21(config, device=torch.device("cpu"))
    for weight in model.diffusion_model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return model.eval()


class BenchImages:
    """Random pictures: nothing to compute, all to carry."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": ("INT", {"default": 0, "max": 2**64 - 1}),
                "count": ("INT", {"default": 1}),
                "side": ("INT", {"default": 1024, "max": 16384}),
            }
        }

    def make(self, seed: int, count: int, side: int) -> tuple[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(count, side, side, 3, generator=generator),)


class BenchPictures:
    """Pictures as a VAE gives them; see ``benchmarks.pictures``."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "fleet/benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "count": ("INT", {"default": 1}),
                "side": ("INT", {"default": 1024, "max": 16384}),
                "content": ("STRING", {"default": "bfloat16"}),
            }
        }

    def make(self, count: int, side: int, content: str) -> tuple[torch.Tensor]:
        return (torch.from_numpy(pictures(count, side, content)),)


NODE_CLASS_MAPPINGS = {
    "BenchModel": BenchModel,
    "BenchImages": BenchImages,
    "BenchPictures": BenchPictures,
    "BenchWork": BenchWork,
    "BenchPause": BenchPause,
    **TILE_NODES,
}
if WORKER:
    die_before_replies()
