"""Writes tiny random models that ComfyUI's stock loaders accept; run with ComfyUI's own classes.

``python models.py COMFYUI FOLDER [checkpoint]``: an SD 1.5 of one level, its ControlNet, TAESD, an
ESRGAN, a video VAE as Wan's; and if that is said a whole checkpoint, whose CLIP cannot be small.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: The widths that ComfyUI knows an SD 1.5 by; the rest is as small as it can be.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "num_heads": 8,
    "legacy": False,
}


def write_models(comfyui: Path, folder: Path, *more: str) -> None:
    """Write them into ComfyUI's model folders below ``folder``."""
    command = [sys.executable, str(Path(__file__).resolve()), str(comfyui), str(folder), *more]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main(comfyui: str, folder: str, *more: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv = ["models", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.ops
    import torch
    from comfy.cldm.cldm import ControlNet
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ldm.wan.vae import WanVAE
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file
    from spandrel.architectures.ESRGAN import ESRGAN

    generator = torch.Generator().manual_seed(3)

    def weight_like(weight: torch.Tensor) -> torch.Tensor:
        """Numbers that keep activations near 1; no layer is zero, as before a training."""
        if not weight.ndim:  # a scale
            return weight
        noise = torch.randn(weight.shape, generator=generator)
        fan = weight[0].numel()
        return (noise * (fan**-0.5 if fan > 1 else 0.05)).to(weight.dtype)

    def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
        norms = {
            f"{name}.{weight}"
            for weight in ("weight", "gamma")
            for name, part in module.named_modules()
            if "Norm" in type(part).__name__
        }
        return {
            name: weight_like(weight) + (name in norms)
            for name, weight in module.state_dict().items()
        }

    def save(parts: Mapping[str, torch.nn.Module], place: str) -> None:
        path = Path(folder) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            f"{prefix}{name}": weight
            for prefix, module in parts.items()
            for name, weight in weights_of(module).items()
        }
        save_file(found, path)

    ops = comfy.ops.manual_cast
    unet = UNetModel(**UNET, out_channels=4, operations=ops, transformer_depth_output=[1, 1])
    save({"": unet}, "diffusion_models/tiny_sd.safetensors")
    control = ControlNet(**UNET, hint_channels=3, operations=ops)
    save({"": control}, "controlnet/tiny_control.safetensors")
    taesd = TAESD()
    save({"": taesd.taesd_encoder}, "vae_approx/taesd_encoder.safetensors")
    save({"": taesd.taesd_decoder}, "vae_approx/taesd_decoder.safetensors")
    video = WanVAE(
        dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0,
    )  # fmt: skip
    save({"": video}, "vae/tiny_wan.safetensors")
    esrgan = ESRGAN(num_filters=8, num_blocks=1, scale=2)
    save({"": esrgan}, "upscale_models/tiny_esrgan.safetensors")
    if "checkpoint" in more:
        config = json.loads((Path(comfyui) / "comfy" / "sd1_clip_config.json").read_text())
        clip = CLIPTextModel(config, torch.float16, "cpu", ops)
        parts = {
            "model.diffusion_model.": unet,
            "cond_stage_model.transformer.": clip,
            "first_stage_model.": taesd,
        }
        save(parts, "checkpoints/tiny_sd.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
