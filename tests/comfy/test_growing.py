"""What the user sees of a picture that ComfyUI's own algorithms compute by tiles, as it grows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from comfyfleet.config import demo_dir

pytestmark = pytest.mark.comfy

SIDE = 50


@pytest.fixture(autouse=True)
def server(values: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # ComfyUI's server itself is not needed here, and cannot be imported beside the tests.
    monkeypatch.setitem(sys.modules, "server", MagicMock())


class Doubling:
    """An upscale model whose pixels are known: each one four times."""

    scale = 2

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        return tile.repeat_interleave(2, -1).repeat_interleave(2, -2)


class FrameByFrame(torch.nn.Module):
    """A VAE of pictures as one of videos."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.model.decode(each) for each in latent.unbind(2)], 2)


def grown(sheet: Any, compute: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """What is seen after each tile."""
    assert sheet.seen(SIDE) is None
    found = []
    while sheet.num_ready:
        number, tile = sheet.next()
        sheet.take(number, compute(tile))
        found.append(sheet.seen(SIDE))
    return found


@pytest.mark.parametrize("grey", [False, True])
def test_each_tile_is_seen_where_it_belongs(grey: bool) -> None:
    """Of every third pixel, as the picture is 170 wide; odd sizes, and tiles that overlap."""
    from comfyfleet.extension.spread.upscaling import ModelUpscale

    model = Doubling()
    picture = torch.rand(1, 71, 85, 1).expand(-1, -1, -1, 3) if grey else torch.rand(1, 71, 85, 3)
    whole = model(picture.movedim(-1, 1)).movedim(1, -1)[0, ::3, ::3]
    seen = grown(ModelUpscale(upscale_model=model, tile=64, overlap=8).sheet(picture), model)
    assert len(seen) == 4 and torch.equal(seen[-1], whole)
    for before, after in pairwise(seen):
        old, new = (each.sum(-1) > 0 for each in (before, after))
        assert torch.equal(before[old], whole[old]) and bool((new | ~old).all())
        assert new.sum() > old.sum()


@torch.inference_mode()
@pytest.mark.parametrize("frames", [0, 3], ids=["picture", "video"])
def test_a_decode_is_seen_in_colours(frames: int) -> None:
    """Three times: ComfyUI computes tiles of three shapes, and takes their mean."""
    from comfyfleet.comfy.demo_model import load_demo_model
    from comfyfleet.extension.spread.vae import Tiling, _decode_sheet, decode_tiles

    vae = load_demo_model(demo_dir() / "weights.safetensors")[2]
    latent = vae.encode(torch.rand(1, 10, 14, 3).repeat_interleave(16, 1).repeat_interleave(16, 2))
    if frames:
        latent = latent[:, :, None].expand(-1, -1, frames, -1, -1)
        vae.first_stage_model = FrameByFrame(vae.first_stage_model)
        vae.upscale_ratio = (lambda count: count, 8, 8)
    sheet = _decode_sheet(Tiling(vae=vae, tile_size=64, overlap=16), latent.half())
    seen = grown(sheet, lambda tile: decode_tiles(vae, [tile])[0])
    whole = sheet.joined().reshape(-1, 160, 224, 3)[0, ::4, ::4]
    assert len(seen) > 8 and seen[-1].shape == whole.shape
    # The demo model's VAE makes a little more of a tile if it sees more: 0.04, not 0.3.
    assert (seen[-1] - whole).abs().mean() < 0.1
    # What is not there yet is grey.
    assert (seen[0] == 0.5).float().mean() > 0.5 > (seen[-1] == 0.5).float().mean()
