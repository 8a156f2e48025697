"""HunyuanImage 2.1, distilled too, and its refiner: HunyuanVideo's class, over one image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.parallel.call import Call
from tests.parity.case import Case, noise
from tests.parity.families.hunyuan_video import call as video_call
from tests.parity.families.hunyuan_video import control, hunyuan, masked


def hunyuan_image(**options: Any) -> nn.Module:
    parameters = {"patch_size": [1, 1], "axes_dim": [8, 8], "vec_in_dim": None, "byt5": True}
    return hunyuan(**{**parameters, **options})


def refiner() -> nn.Module:
    return hunyuan(patch_size=[1, 1, 1], vec_in_dim=None, in_channels=8, meanflow=True)


def steps() -> dict[str, Tensor]:
    return {"sigmas": torch.tensor([0.7]), "sample_sigmas": torch.tensor([1.0, 0.7, 0.3, 0.0])}


def call(h: int = 5, w: int = 6, batch: int = 1, glyphs: int = 5, **kwargs: Any) -> Call:
    byt5 = noise(batch, glyphs, 1472, seed=4) if glyphs else None
    whole = video_call(batch=batch, y=None, txt_byt5=byt5, **kwargs)
    return Call((noise(batch, 4, h, w), *whole.args[1:]), whole.kwargs)


def refine(**kwargs: Any) -> Call:
    whole = video_call(y=None, disable_time_r=True, **kwargs)
    return Call((noise(1, 8, 1, 5, 7), *whole.args[1:]), whole.kwargs)


CASES = (
    Case("hunyuan_image", "plain", hunyuan_image, call),
    Case("hunyuan_image", "odd size, batch 2", hunyuan_image, lambda: call(w=7, batch=2, text=6)),
    Case("hunyuan_image", "3 heads", lambda: hunyuan_image(heads=3), call),
    Case("hunyuan_image", "one word, one glyph", hunyuan_image, lambda: call(text=1, glyphs=1)),
    Case(
        "hunyuan_image",
        "masked text",
        hunyuan_image,
        lambda: call(glyphs=0, attention_mask=masked(7)),
    ),
    Case(
        "hunyuan_image",
        "distilled",
        lambda: hunyuan_image(meanflow=True),
        lambda: call(transformer_options=steps()),
    ),
    Case("hunyuan_image", "control residuals", hunyuan_image, lambda: call(control=control(30))),
    Case("hunyuan_image", "refiner", refiner, refine),
)
