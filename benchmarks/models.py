"""Models of ComfyUI's own classes, random weights: about a second per forward on one core."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from comfyfleet.config import find_comfyui
from comfyfleet.errors import InputError
from comfyfleet.parallel.call import Call

#: A model's method for one step, the model, and batch and text length -> arguments of it.
Bench = tuple[nn.Module, Callable[[int, int], Call]]


def build(family: str) -> Bench:
    """The model of a family, seeded: equal in every process."""
    if family not in _FAMILIES:
        raise InputError(f"family is {family!r}; choose one of {', '.join(_FAMILIES)}.")
    _use_comfyui()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _FAMILIES[family]()


def _use_comfyui() -> None:
    if str(find_comfyui()) not in sys.path:
        sys.path.insert(0, str(find_comfyui()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


def _wan() -> Bench:
    """The project's measuring model, 1800 tokens of video."""
    from comfy.ldm.wan.model import WanModel

    model = _made(WanModel, dim=512, num_heads=4, num_layers=6, ffn_dim=2048)

    def call(batch: int, text: int) -> Call:
        x, context = torch.randn(batch, 16, 5, 36, 40), torch.randn(batch, text, 4096)
        return Call((x, torch.full((batch,), 500.0), context), {"transformer_options": {}})

    return model, call


def _flux() -> Bench:
    """1024 tokens of image and the text."""
    from comfy.ldm.flux.model import Flux

    model = _made(
        Flux, in_channels=16, out_channels=16, vec_in_dim=64, context_in_dim=256, hidden_size=768,
        mlp_ratio=4.0, num_heads=6, depth=3, depth_single_blocks=6, axes_dim=[16, 56, 56],
        theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
    )  # fmt: skip

    def call(batch: int, text: int) -> Call:
        x, context = torch.randn(batch, 16, 64, 64), torch.randn(batch, text, 256)
        when, y = torch.full((batch,), 0.5), torch.randn(batch, 64)
        arguments = (x, when, context, y, torch.full((batch,), 3.5))
        return Call(arguments, {"transformer_options": {}})

    return model, call


def _made(cls: type[nn.Module], **options: Any) -> nn.Module:
    import comfy.ops

    options |= {"dtype": torch.float32, "device": "cpu"}
    try:
        model = cls(operations=comfy.ops.disable_weight_init, **options)
    except TypeError:  # an option of another version of ComfyUI
        options.pop("txt_ids_dims", None)
        model = cls(operations=comfy.ops.disable_weight_init, **options)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return model.eval().requires_grad_(False)


_FAMILIES: dict[str, Callable[[], Bench]] = {"wan": _wan, "flux": _flux}
