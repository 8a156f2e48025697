"""Flux 2: dev, Klein, reference latents of every method; models of its class with other parts."""

from __future__ import annotations

from typing import Any

from torch import nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, known, make, needs, noise
from tests.parity.families.flux import call as flux_call
from tests.parity.families.flux import residuals


def flux2(heads: int = 4, **options: Any) -> nn.Module:
    from comfy.ldm.flux.model import Flux, FluxParams

    parameters = {
        "in_channels": 6, "out_channels": 6, "vec_in_dim": None, "context_in_dim": 20,
        "hidden_size": 16 * heads, "mlp_ratio": 3.0, "num_heads": heads, "depth": 2,
        "depth_single_blocks": 3, "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1,
        "qkv_bias": False, "guidance_embed": True, "global_modulation": True, "mlp_silu_act": True,
        "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
        "txt_ids_dims": [3],
    }  # fmt: skip
    return make(Flux, **known(FluxParams, **{**parameters, **options}))


def klein(**options: Any) -> nn.Module:
    return flux2(guidance_embed=False, **options)


def klein_with_zero_timestep() -> nn.Module:
    from comfy.ldm.flux.model import Flux

    needs(Flux.forward_orig, "timestep_zero_index")
    return klein()


def ovis() -> nn.Module:
    from comfy.ldm.flux.model import FluxParams

    needs(FluxParams, "yak_mlp", "txt_norm")
    return flux2(
        global_modulation=False, mlp_silu_act=False, ops_bias=True, guidance_embed=False,
        yak_mlp=True, txt_norm=True, txt_ids_dims=[1, 2], axes_dim=[4, 6, 6],
    )  # fmt: skip


def call(h: int = 5, w: int = 6, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    x, *rest = flux_call(batch=batch, text=text).args
    return Call((noise(*x.shape[:1], 6, h, w), *rest), {"transformer_options": {}, **kwargs})


def edit(method: str, batch: int = 1, text: int = 7, **kwargs: Any) -> Call:
    latents = [noise(1, 6, 4, 3, seed=4), noise(1, 6, 3, 5, seed=5)]
    latents = [latent.repeat(batch, 1, 1, 1) for latent in latents]
    return call(batch=batch, text=text, ref_latents=latents, ref_latents_method=method, **kwargs)


CASES = (
    Case("flux2", "dev", flux2, call),
    Case("flux2", "odd size, batch 2", flux2, lambda: call(h=5, w=7, batch=2, text=5)),
    Case("flux2", "3 heads", lambda: flux2(heads=3), call),
    Case("flux2", "one word of text", flux2, lambda: call(text=1)),
    Case("flux2", "Klein", klein, call),
    Case("flux2", "reference latents, index", flux2, lambda: edit("index")),
    Case("flux2", "reference latents, offset", flux2, lambda: edit("offset")),
    Case("flux2", "reference latents, uxo", klein, lambda: edit("uxo", batch=2)),
    Case(
        "flux2",
        "reference latents, timestep zero",
        klein_with_zero_timestep,
        lambda: edit("index_timestep_zero", text=5),
    ),
    Case(
        "flux2",
        "reference latents, timestep zero, batch 2, one word of text",
        klein_with_zero_timestep,
        lambda: edit("index_timestep_zero", batch=2, text=1),
    ),
    Case("flux2", "control residuals", flux2, lambda: call(control=residuals(30))),
    Case("flux2", "Ovis", ovis, lambda: call(text=6)),
)
