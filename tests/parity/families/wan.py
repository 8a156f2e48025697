"""Wan 2.1 and 2.2 with all of their conditions; SCAIL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, make, needs, noise

SMALL = {"dim": 48, "num_heads": 4, "num_layers": 2, "ffn_dim": 64, "text_dim": 24, "freq_dim": 16}


def wan(name: str = "WanModel", **options: Any) -> nn.Module:
    import comfy.ldm.wan.model

    if not hasattr(comfy.ldm.wan.model, name):
        pytest.skip(f"this ComfyUI has no {name}")
    return make(getattr(comfy.ldm.wan.model, name), **{**SMALL, **options})


def with_references_in_context() -> nn.Module:
    from comfy.ldm.wan.model import WanModel

    needs(WanModel.rope_encode, "source_id")
    return wan()


def vace(**options: Any) -> nn.Module:
    sizes = {"num_layers": 4, "vace_layers": 2, "vace_in_dim": 12}
    return wan("VaceWanModel", **sizes, **options)


def call(
    t: int = 3,
    h: int = 6,
    w: int = 10,
    batch: int = 1,
    text: int = 7,
    channels: int = 16,
    timestep: Tensor | None = None,
    **kwargs: Any,
) -> Call:
    x = noise(batch, channels, t, h, w)
    timestep = torch.linspace(300.0, 700.0, batch) if timestep is None else timestep
    text_tokens = noise(batch, text, 24, seed=2)
    return Call((x, timestep, text_tokens), {"transformer_options": {}, **kwargs})


def per_frame(t: int) -> Tensor:
    """The first frame is given, as in 2.2 5B."""
    found = torch.linspace(300.0, 700.0, 2)[:, None].repeat(1, t)
    found[:, 0] = 0.0
    return found


def vace_call(contexts: int, batch: int = 1) -> Call:
    contents = noise(batch, contexts, 12, 3, 6, 10, seed=4)
    return call(batch=batch, vace_context=contents, vace_strength=[1.0, 0.7][:contexts])


def scail_call(**kwargs: Any) -> Call:
    pose = noise(1, 20, 3, 4, 6, seed=4)
    reference = noise(1, 20, 2, 6, 10, seed=5)
    return call(channels=20, pose_latents=pose, reference_latent=reference, **kwargs)


def scail2_call() -> Call:
    masks = {"ref_mask_latents": noise(1, 28, 5, 6, 10), "sam_latents": noise(1, 28, 3, 4, 6)}
    return scail_call(ref_mask_flag=False, **masks)


CASES = (
    Case("wan", "t2v", wan, call),
    Case("wan", "t2v, odd size, batch 2", wan, lambda: call(t=1, h=5, w=7, batch=2)),
    Case("wan", "t2v, 3 heads", lambda: wan(num_heads=3), call),
    Case("wan", "t2v, one word of text", wan, lambda: call(text=1)),
    Case(
        "wan",
        "i2v",
        lambda: wan(model_type="i2v", in_dim=36),
        lambda: call(channels=36, batch=2, text=5, clip_fea=noise(2, 5, 1280, seed=4)),
    ),
    Case(
        "wan",
        "first and last frame",
        lambda: wan(model_type="i2v", in_dim=36, flf_pos_embed_token_number=10),
        lambda: call(channels=36, clip_fea=noise(1, 10, 1280, seed=4)),
    ),
    Case(
        "wan",
        "fun, reference",
        lambda: wan(in_dim_ref_conv=16),
        lambda: call(h=5, w=7, reference_latent=noise(1, 16, 6, 8, seed=4)),
    ),
    Case("wan", "phantom", wan, lambda: call(h=5, time_dim_concat=noise(1, 16, 2, 5, 10, seed=4))),
    Case(
        "wan",
        "references in context",
        with_references_in_context,
        lambda: call(h=5, context_latents=[noise(1, 16, 1, 5, 7), noise(1, 16, 2, 4, 4)]),
    ),
    Case("wan", "VACE", vace, lambda: vace_call(1)),
    Case(
        "wan",
        "VACE, 3 heads, 2 contexts, batch 2",
        lambda: vace(num_heads=3),
        lambda: vace_call(2, batch=2),
    ),
    Case(
        "wan",
        "camera",
        lambda: wan("CameraWanModel", model_type="t2v", in_dim_control_adapter=3),
        lambda: call(batch=2, camera_conditions=noise(2, 3, 3, 48, 80, seed=4)),
    ),
    Case(
        "wan",
        "2.2 5B, timestep per frame",
        wan,
        lambda: call(batch=2, timestep=per_frame(3)),
    ),
    Case(
        "wan",
        "2.2 5B, timestep per frame, odd size",
        wan,
        lambda: call(t=5, h=5, w=7, batch=2, text=1, timestep=per_frame(5)),
    ),
    Case(
        "wan",
        "2.2 5B, timestep per frame, reference",
        lambda: wan(in_dim_ref_conv=16),
        lambda: call(
            t=5, h=5, w=7, batch=2, timestep=per_frame(5), reference_latent=noise(2, 16, 6, 8)
        ),
    ),
    Case("wan", "SCAIL", lambda: wan("SCAILWanModel", in_dim=20), scail_call),
    Case(
        "wan",
        "SCAIL-2",
        lambda: wan("SCAIL2WanModel", in_dim=20),
        scail2_call,
    ),
)
