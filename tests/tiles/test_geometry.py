"""Every pixel has its tile, and every tile its context inside of the picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import InputError
from comfyfleet.tiles.geometry import Rect, grid, shaped_like
from comfyfleet.tiles.steps import MODES, SEAM_FIXES, Layout

layouts = st.builds(
    Layout,
    mode=st.sampled_from(MODES),
    tile_width=st.integers(64, 300),
    tile_height=st.integers(64, 300),
    padding=st.integers(0, 400),
    mask_blur=st.integers(0, 40),
    uniform=st.booleans(),
    seam_fix=st.sampled_from(SEAM_FIXES),
    seam_width=st.integers(2, 200),
    seam_blur=st.integers(0, 20),
    seam_padding=st.integers(0, 100),
    unit=st.sampled_from([8, 16, 32]),
)
sides = st.integers(1, 700)


@given(sides, sides, st.integers(60, 300), st.integers(60, 300))
def test_a_grid_covers_each_pixel_once(width, height, tile_width, tile_height):
    tiles = [
        tile for row in grid(Rect(0, 0, width, height), tile_width, tile_height) for tile in row
    ]
    assert sum(tile.width * tile.height for tile in tiles) == width * height
    assert not any(a.meets(b) for i, a in enumerate(tiles) for b in tiles[:i])


@given(layouts, sides, sides)
def test_steps_stay_in_the_picture_and_have_sizes_that_models_can_compute(layout, width, height):
    whole = Rect(0, 0, width, height)
    for number, step in enumerate(layout.steps(width, height)):
        assert step.index == number
        assert step.crop.within(whole) == step.crop and not step.crop.is_empty
        assert step.reach.within(step.crop) == step.reach
        assert step.area.within(whole).within(step.crop) == step.area.within(whole)
        assert all(side > 0 and side % layout.unit == 0 for side in step.size)


@given(layouts, sides, sides)
def test_tiles_and_seam_fixes_are_as_many_as_they_should_be(layout, width, height):
    steps = layout.steps(width, height)
    tile_w = min(layout.tile_width, -(-width // layout.unit) * layout.unit)
    tile_h = min(layout.tile_height, -(-height // layout.unit) * layout.unit)
    columns, rows = -(-width // tile_w), -(-height // tile_h)
    seams = {
        "None": 0,
        "Band Pass": rows + columns - 2,
        "Half Tile": rows * (columns - 1) + (rows - 1) * columns,
    }
    seams["Half Tile + Intersections"] = seams["Half Tile"] + (rows - 1) * (columns - 1)
    redraw = 0 if layout.mode == "None" else rows * columns
    assert sum(step.kind == "redraw" for step in steps) == redraw
    assert sum(step.kind == "seams" for step in steps) == seams[layout.seam_fix]


def test_linear_goes_line_by_line_and_chess_by_colors():
    def areas(mode):
        steps = Layout(mode=mode, tile_width=64, tile_height=64).steps(192, 128)
        return [(step.area.left // 64, step.area.top // 64) for step in steps]

    assert areas("Linear") == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert areas("Chess") == [(0, 0), (2, 0), (1, 1), (1, 0), (0, 1), (2, 1)]


def test_uniform_tiles_are_computed_at_one_size_others_at_their_own():
    steps = Layout(tile_width=512, tile_height=512, padding=32).steps(1300, 1100)
    assert {step.size for step in steps} == {(544, 544)}
    assert steps[4].crop == Rect(480, 480, 1056, 1056)
    # The rest in the corner gets a crop of the same shape, which is enlarged.
    assert steps[-1].crop == Rect(992, 792, 1300, 1100)
    steps = Layout(tile_width=512, tile_height=512, padding=32, uniform=False).steps(1300, 1100)
    assert steps[-1].crop == Rect(988, 988, 1300, 1100)
    assert steps[-1].size == (312, 112)


def test_a_crop_gets_context_on_the_side_that_has_some():
    whole = Rect(0, 0, 1000, 1000)
    assert shaped_like(Rect(0, 100, 100, 300), 64, 64, whole) == Rect(0, 100, 200, 300)
    assert shaped_like(Rect(900, 100, 1000, 300), 64, 64, whole) == Rect(800, 100, 1000, 300)
    assert shaped_like(Rect(0, 0, 50, 20), 64, 64, Rect(0, 0, 50, 30)) == Rect(0, 0, 50, 30)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tile_width": 0}, "tile_width is 0; give 8 or more"),
        ({"tile_height": -8}, "tile_height is -8"),
        ({"padding": -1}, "padding is -1; give 0 or more"),
        ({"mode": "Spiral"}, "mode_type is 'Spiral'; give one of Linear, Chess, None"),
        ({"seam_fix": "Glue"}, "seam_fix_mode is 'Glue'"),
        ({"seam_fix": "Band Pass", "seam_width": 1}, "seam_fix_width is 1"),
    ],
)
def test_what_cannot_be_is_named(wrong, said):
    with pytest.raises(InputError, match=said):
        Layout(**wrong)
