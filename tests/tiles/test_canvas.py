"""One picture, whoever computes its tiles, in whatever order they arrive."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyfleet.errors import ComfyFleetError
from comfyfleet.tiles.canvas import Canvas
from comfyfleet.tiles.geometry import Rect, multiple
from comfyfleet.tiles.masks import mask_of
from comfyfleet.tiles.steps import SEAM_FIXES, Layout
from tests.tiles import reference
from tests.tiles.test_geometry import layouts


def picture(batch=1, height=200, width=230, channels=3):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(5))


def computed(crop, size):
    """Something that depends on all of the crop, on each pixel and on the size."""
    return torch.sin(crop * 7 + crop.mean(dim=(1, 2), keepdim=True)) * 0.5 + size[0] / 1e4


def finish(canvas, compute=computed, pick=lambda begun: 0):
    """Compute all groups, in flight as many as may be; ``pick``: which of these ends next."""
    begun = []
    while not canvas.done:
        while canvas.num_ready:
            number = canvas.begin()
            begun.append((number, canvas.crops(number)))
        number, crops = begun.pop(pick(begun))
        steps = canvas.groups[number]
        canvas.put(number, [compute(c, s.size) for c, s in zip(crops, steps, strict=True)])
    assert not begun and not canvas.num_ready
    return canvas.pixels


def one_by_one(canvas, compute=computed):
    """As on one device: the next group begins when the one before it is drawn."""
    while not canvas.done:
        number = canvas.begin()
        steps = canvas.groups[number]
        crops = canvas.crops(number)
        canvas.put(number, [compute(c, s.size) for c, s in zip(crops, steps, strict=True)])
    return canvas.pixels


small = Layout(tile_width=64, tile_height=64, padding=16, mask_blur=4)
FIXES = [
    Layout(
        **{
            **{s: getattr(small, s) for s in small.__slots__},
            "seam_fix": fix,
            "seam_width": 24,
            "seam_padding": 8,
            "seam_blur": 3,
        }
    )
    for fix in SEAM_FIXES
]


@pytest.mark.parametrize("layout", FIXES, ids=SEAM_FIXES)
@pytest.mark.parametrize("progressive", [True, False], ids=["progressive", "independent"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_order_of_arrival_changes_no_bit(layout, progressive, batch):
    alone = one_by_one(Canvas(picture(2), layout, progressive=progressive, batch=batch))
    for seed in range(4):
        rng = random.Random(seed)
        canvas = Canvas(picture(2), layout, progressive=progressive, batch=batch)
        assert torch.equal(finish(canvas, pick=lambda b: rng.randrange(len(b))), alone)  # noqa: B023


@given(layouts, st.integers(1, 260), st.integers(1, 260), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_layout_is_the_same_whoever_is_first(layout, width, height, progressive, seed):
    rng = random.Random(seed)
    alone = one_by_one(Canvas(picture(1, height, width), layout, progressive=progressive))
    canvas = Canvas(picture(1, height, width), layout, progressive=progressive)
    assert torch.equal(finish(canvas, pick=lambda begun: rng.randrange(len(begun))), alone)


@given(layouts, st.integers(1, 260), st.integers(1, 260), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_sampler_that_returns_its_input_changes_no_bit(layout, width, height, progressive):
    ramp = torch.linspace(0, 1, width).repeat(height, 1)
    both = torch.stack([torch.full((height, width), 0.3), ramp], dim=-1)[None]
    canvas = Canvas(both.clone(), layout, progressive=progressive)
    assert torch.equal(finish(canvas, lambda crop, _: crop), both)


@given(layouts, st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_masks_of_tiles_cover_each_pixel_and_sum_to_one(layout, width, height):
    whole, total = Rect(0, 0, width, height), torch.zeros(height, width)
    steps = [step for step in layout.steps(width, height) if step.kind == "redraw"]
    for step in steps:
        mask, area = mask_of(step, whole), step.reach
        assert mask.shape == (area.height, area.width) and 0 <= mask.min() <= mask.max() <= 1 + 1e-6
        total[area.top : area.bottom, area.left : area.right] += mask
    if steps and layout.padding >= 3 * layout.mask_blur:
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    elif steps:
        assert total.min() > 0.2  # softer than the context: what is missing is shared out


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(("height", "width"), [(200, 230), (64, 64), (70, 150), (131, 97)])
@pytest.mark.parametrize(
    ("tile", "padding", "blur"),
    [((64, 64), 16, 4), ((96, 64), 32, 8), ((64, 104), 8, 0), ((64, 96), 20, 11)],
    ids=["square", "wide", "high, hard edges", "high, softer than its context"],
)
def test_progressive_linear_is_the_public_algorithm(tile, padding, blur, height, width, uniform):
    """Tiles of any shape: width and height, once exchanged, would go unseen in square ones."""
    layout = Layout(
        tile_width=tile[0],
        tile_height=tile[1],
        padding=padding,
        mask_blur=blur,
        uniform=uniform,
    )
    ours = finish(Canvas(picture(1, height, width), layout, progressive=True))
    # Unlike there, a tile that is larger than the picture is cut to it.
    tile = (min(tile[0], multiple(width, 8)), min(tile[1], multiple(height, 8)))
    expected = reference.redraw_linear(
        picture(1, height, width), computed, tile=tile, padding=padding, blur=blur, uniform=uniform
    )
    assert torch.allclose(ours, expected, atol=2e-6)


def test_softness_is_that_of_the_original():
    """Pillow's blur is an approximation in 8 bits; ours is the Gaussian that it approximates."""
    mask = np.zeros((200, 200), np.float32)
    mask[64:128, 0:64] = 1
    step = Layout(tile_width=64, tile_height=64, padding=32, mask_blur=8).steps(200, 200)[4]
    area = step.reach
    expected = reference.blurred_by_pillow(mask, 8)[area.top : area.bottom, area.left : area.right]
    assert abs(mask_of(step, Rect(0, 0, 200, 200)).numpy() - expected).max() < 0.02


def test_tiles_that_do_not_touch_begin_at_once_and_others_wait():
    canvas = Canvas(picture(1, 256, 256), small, progressive=True)
    assert canvas.begin() == 0 and not canvas.num_ready
    canvas.put(0, canvas.crops(0))
    assert canvas.begin() == 1 and not canvas.num_ready
    canvas.put(1, canvas.crops(1))
    # The third of the first line, and the first of the second, which saw both above it.
    assert [canvas.begin(), canvas.begin()] == [2, 4] and not canvas.num_ready
    chess = Layout(tile_width=64, tile_height=64, padding=0, mask_blur=0, mode="Chess")
    canvas = Canvas(picture(1, 256, 256), chess, progressive=True)
    assert [canvas.begin() for _ in range(8)] == list(range(8))


def test_independent_tiles_begin_all_at_once_and_seams_when_they_are_done():
    canvas = Canvas(picture(1, 128, 128), FIXES[2], progressive=False)
    begun = [canvas.begin() for _ in range(4)]
    assert begun == [0, 1, 2, 3] and not canvas.num_ready
    for number in begun:
        canvas.put(number, canvas.crops(number))
    assert canvas.num_ready


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 5, 5, 3), torch.zeros(2, 80, 80, 3), torch.zeros(1, 80, 80, 1)]
)
def test_a_tile_of_another_size_is_refused(wrong):
    canvas = Canvas(picture(1, 256, 256), small, progressive=True)
    with pytest.raises(ComfyFleetError, match="tile 0 came as"):
        canvas.put(canvas.begin(), [wrong])


def test_a_tile_costs_the_same_in_a_larger_picture():
    def seconds(side):
        """Of this thread's own work: others may have the machine for the rest."""
        layout = Layout(tile_width=128, tile_height=128)
        canvas = Canvas(torch.full((1, side, side, 3), 0.5), layout, progressive=True)
        best = 9.0
        for _ in range(8):
            number = canvas.begin()
            crops = canvas.crops(number)
            began = time.thread_time()
            canvas.put(number, crops)
            best = min(best, time.thread_time() - began)
        return best

    # Against each other: a cost that grew with the picture would be 16 times as much.
    assert seconds(4096) < 5 * seconds(1024)
