"""What a tile sees of conditionings and patches: the part of each that lies where the tile lies.

Hints, masks and latents are ramps: each pixel holds its own place, so that a part says where it
was cut. The picture has 128 x 96 pixels, its latents 16 x 12.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from comfyfleet.comfy.conditioning import (
    Views,
    crop_conditioning,
    crop_model,
    require_croppable,
)
from comfyfleet.errors import InputError
from comfyfleet.tiles.geometry import Rect

pytestmark = pytest.mark.comfy

WIDTH, HEIGHT = 128, 96
MIDDLE, EDGE, CORNER = Rect(32, 24, 96, 72), Rect(64, 16, 128, 64), Rect(88, 64, 128, 96)


def views(*crops: Rect, **changed: Any) -> Views:
    """Tiles of the one picture, computed at their own size if nothing else is said."""
    given: dict[str, Any] = {
        "picture": (WIDTH, HEIGHT),
        "original": (WIDTH, HEIGHT),
        "size": (crops[0].width, crops[0].height),
        "unit": 8,
        "first": 0,
        "count": 1,
        "total": 1,
    }
    return Views(crops=crops, **{**given, **changed})


def ramp(width: int = WIDTH, height: int = HEIGHT, batch: int = 1) -> torch.Tensor:
    """[B, 2, H, W]: x and y of each pixel, 1000 more in each picture than in the one before."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.stack([x, y]) + 1000 * at for at in range(batch)]).float()


def between(crop: Rect, size: tuple[int, int]) -> torch.Tensor:
    """[1, 2, H, W]: the ramp's crop, bilinear at that size: places of the new pixels' middles."""
    lines = []
    for begin, side, length in zip((crop.left, crop.top), (crop.width, crop.height), size):  # noqa: B905
        at = (torch.arange(length) + 0.5) * side / length - 0.5
        lines.append(begin + at.clamp(0, side - 1))
    return torch.stack([lines[0].expand(size[1], -1), lines[1][:, None].expand(-1, size[0])])[None]


def slice_of(pixels: torch.Tensor, crop: Rect, per: int = 1) -> torch.Tensor:
    """The part of [..., H, W] where the crop lies, if an entry is that many pixels."""
    left, top, right, bottom = (x // per for x in (crop.left, crop.top, crop.right, crop.bottom))
    return pixels[..., top:bottom, left:right]


def only(extra: dict[str, Any], seen: Views) -> dict[str, Any]:
    """The options of the only prompt, as the tiles see them."""
    [[embedding, found]] = crop_conditioning([("prompt", extra)], seen)
    assert embedding == "prompt"
    return found


def names(*prompts: tuple[str, dict[str, Any]], seen: Views) -> list[str]:
    """The prompts that are left for a tile."""
    return [embedding for embedding, _ in crop_conditioning(prompts, seen)]


crops = pytest.mark.parametrize("crop", [MIDDLE, EDGE, CORNER], ids=["middle", "edge", "corner"])


@crops
def test_a_mask_is_cut_where_the_tile_lies(crop: Rect) -> None:
    """A tile at its own size has the mask's own pixels, none of them interpolated."""
    mask = ramp()[0]
    assert torch.equal(only({"mask": mask}, views(crop))["mask"], slice_of(mask, crop))


@crops
@pytest.mark.parametrize("times", [2, 0.5])
def test_a_mask_is_as_large_as_the_tile_is_computed(crop: Rect, times: float) -> None:
    """Cut first and resized then: what lies beside the tile does not bleed into it."""
    size = (int(crop.width * times), int(crop.height * times))
    found = only({"mask": ramp()[0]}, views(crop, size=size))["mask"]
    assert torch.allclose(found[None], between(crop, size), atol=1e-4)


def test_a_mask_of_another_size_covers_the_whole_picture() -> None:
    """ComfyUI stretches masks to the picture: a pixel of this one is two of the picture."""
    mask = ramp(WIDTH // 2, HEIGHT // 2)[0]
    found = only({"mask": mask}, views(MIDDLE, size=(32, 24)))["mask"]
    assert torch.equal(found, slice_of(mask, MIDDLE, 2))


BESIDE_NOISE = [
    "concat_image",
    "concat_latent_image",
    "concat_mask",
    "control_video",
    "time_dim_concat",
]


@crops
@pytest.mark.parametrize("key", BESIDE_NOISE)
def test_latents_beside_the_noise_are_cut_in_units_of_the_vae(crop: Rect, key: str) -> None:
    """Inpainting models would see another part of the picture than their noise."""
    latent = ramp(16, 12)
    assert torch.equal(only({key: latent}, views(crop))[key], slice_of(latent, crop, 8))


@crops
def test_a_mask_of_pixels_beside_the_noise_stays_one_of_pixels(crop: Rect) -> None:
    """Flux Fill packs 8 x 8 of them into each latent: edges would be lost in a coarse one."""
    mask = ramp()[:, :1]
    assert torch.equal(
        only({"concat_mask": mask}, views(crop))["concat_mask"], slice_of(mask, crop)
    )


@pytest.mark.parametrize("per", [1, 2], ids=["as large as the picture", "of a smaller picture"])
def test_the_rays_of_a_camera_are_one_for_each_pixel_of_the_tile(per: int) -> None:
    """Wan's camera adds them to the noise, whose pixels they must be."""
    coarse = ramp(WIDTH // per, HEIGHT // per)
    rays = torch.stack([coarse, coarse + 0.5, coarse + 0.25], dim=2)
    found = only({"camera_conditions": rays}, views(EDGE))["camera_conditions"]
    expected = between(Rect(*(x // per for x in (64, 16, 128, 64))), (64, 48))
    assert torch.allclose(found[:, :, 0], expected, atol=1e-4)
    assert torch.allclose(found[:, :, 1], expected + 0.5, atol=1e-4)


@pytest.mark.parametrize("key", ["vace_frames", "vace_mask"])
@pytest.mark.parametrize("per", [8, 16], ids=["as large as the noise", "of a smaller picture"])
def test_latents_of_a_video_that_controls_are_as_large_as_the_noise(key: str, per: int) -> None:
    """VACE has a list of them; models add them to the noise, so another size would be an error."""
    coarse = ramp(WIDTH // per, HEIGHT // per)
    video = torch.stack([coarse, coarse + 0.5, coarse + 0.25], dim=2)
    [found] = only({key: [video]}, views(EDGE))[key]
    expected = between(Rect(*(x // per for x in (64, 16, 128, 64))), (8, 6))
    assert torch.allclose(found[:, :, 0], expected, atol=1e-5)
    assert torch.allclose(found[:, :, 1], expected + 0.5, atol=1e-5)


def test_each_reference_latent_is_cut_by_its_own_compression() -> None:
    """A latent of 4 pixels per entry, and one of a video with its frames, beside one of 8."""
    coarse, fine = ramp(16, 12), ramp(32, 24)
    video = torch.stack([coarse, coarse + 0.5, coarse + 0.25], dim=2)
    found = only({"reference_latents": [coarse, fine, video]}, views(EDGE))["reference_latents"]
    for cut, latent, per in zip(found, (coarse, fine, video), (8, 4, 8), strict=True):
        assert torch.equal(cut, slice_of(latent, EDGE, per))


def test_a_reference_latent_is_as_large_as_the_latent_of_the_tile() -> None:
    """A tile that is computed at twice its size has twice the latents."""
    [found] = only({"reference_latents": [ramp(16, 12)]}, views(EDGE, size=(128, 96)))[
        "reference_latents"
    ]
    assert torch.allclose(found, between(Rect(8, 2, 16, 8), (16, 12)), atol=1e-5)


def test_tiles_of_one_batch_lie_behind_each_other() -> None:
    """As their pixels do: all pictures of the first tile, then all of the second."""
    latent = ramp(16, 12, batch=2)
    seen = views(MIDDLE, EDGE, count=2, total=2)
    found = only({"concat_latent_image": latent}, seen)["concat_latent_image"]
    expected = torch.cat([slice_of(latent, MIDDLE, 8), slice_of(latent, EDGE, 8)])
    assert torch.equal(found, expected)


def test_of_a_batch_each_picture_has_its_own_and_one_is_for_all() -> None:
    """A hint per picture goes with its picture, a single one with each of them."""
    seen = views(MIDDLE, first=1, count=2, total=4)
    own, shared = ramp(16, 12, batch=4), ramp(16, 12)
    found = only({"concat_latent_image": own, "concat_mask": shared}, seen)
    assert torch.equal(found["concat_latent_image"], slice_of(own[1:3], MIDDLE, 8))
    assert torch.equal(found["concat_mask"], slice_of(shared, MIDDLE, 8))


# Areas are (height, width, y, x) in units of 8 pixels: this one is 32..80 across, 8..40 down.
AREA = (4, 6, 1, 4)
AREA_IN_PARTS = ("percentage", 32 / HEIGHT, 48 / WIDTH, 8 / HEIGHT, 32 / WIDTH)


@pytest.mark.parametrize("area", [AREA, AREA_IN_PARTS], ids=["units", "parts"])
@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        (MIDDLE, (64, 48), (2, 6, 0, 0)),
        (EDGE, (64, 48), (3, 2, 0, 0)),
        (Rect(16, 0, 80, 48), (64, 48), (4, 6, 1, 2)),
        (Rect(16, 0, 80, 48), (128, 96), (8, 12, 2, 4)),
    ],
    ids=["middle", "edge", "within", "twice as large"],
)
def test_an_area_moves_with_the_tile(
    area: tuple[Any, ...], crop: Rect, size: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """What reaches over the tile's border is cut there; the rest keeps its place."""
    assert only({"area": area}, views(crop, size=size))["area"] == expected


@pytest.mark.parametrize("area", [(2, 3, 0.5, 2), AREA_IN_PARTS], ids=["units", "parts"])
def test_an_area_was_meant_for_the_picture_before_it_grew(area: tuple[Any, ...]) -> None:
    """The user drew it in the picture that came in, half as large as the one that is redrawn."""
    seen = views(Rect(16, 0, 80, 48), original=(WIDTH // 2, HEIGHT // 2))
    assert only({"area": area}, seen)["area"] == (4, 6, 1, 2)


@pytest.mark.parametrize("area", [AREA, AREA_IN_PARTS], ids=["units", "parts"])
def test_an_area_is_counted_in_the_latents_of_the_vae(area: tuple[Any, ...]) -> None:
    """ComfyUI's samplers count areas in latents, and one of this VAE is 16 pixels."""
    crop = Rect(16, 0, 80, 48)
    assert only({"area": area}, views(crop, size=(128, 96), unit=16))["area"] == (4, 6, 1, 2)
    # Both ends lie in the middle of a latent.
    assert only({"area": area}, views(crop, unit=16))["area"] == (2, 3, 0, 1)


def test_an_area_of_a_video_keeps_its_time(values: ModuleType) -> None:
    """In parts, as ComfyUI itself counts the latents of the time axis."""
    from comfy.samplers import resolve_areas_and_cond_masks_multidim

    area = ("percentage", 0.5, *AREA_IN_PARTS[1:3], 0.25, *AREA_IN_PARTS[3:])
    found = only({"area": area}, views(Rect(16, 0, 80, 48)))
    conditions = [found]
    resolve_areas_and_cond_masks_multidim(conditions, (8, 6, 8), torch.device("cpu"))
    assert conditions[0]["area"] == (4, 4, 6, 2, 1, 2)
    assert names(("far", {"area": area}), ("all", {}), seen=views(CORNER)) == ["all"]


def test_a_sliver_of_an_area_has_one_unit_at_least() -> None:
    """ComfyUI cannot sample an area without pixels."""
    assert only({"area": AREA}, views(Rect(78, 0, 128, 48)))["area"] == (4, 1, 1, 0)


@pytest.mark.parametrize("area", [AREA, AREA_IN_PARTS], ids=["units", "parts"])
def test_an_area_has_latents_wherever_the_tile_begins(area: tuple[Any, ...]) -> None:
    """One that begins a few pixels before the tile's end is not rounded past it: ComfyUI would
    give the model a picture without a width."""
    for left in range(WIDTH - 24 + 1):
        for top in range(0, HEIGHT - 16 + 1, 3):
            crop = Rect(left, top, left + 24, top + 16)
            height, width, y, x = only({"area": area}, views(crop)).get("area", (2, 3, 0, 0))
            assert height >= 1 and width >= 1 and y + height <= 2 and x + width <= 3
    assert only({"area": area}, views(Rect(10, 0, 34, 10), size=(24, 16)))["area"] == (1, 1, 1, 2)


def test_a_prompt_whose_area_does_not_reach_the_tile_is_left_out() -> None:
    """Also one that ends where the tile begins."""
    far, touching = (2, 2, 0, 0), (12, 4, 0, 0)
    prompts = [("here", {"area": AREA}), ("far", {"area": far}), ("beside", {"area": touching})]
    assert names(*prompts, ("everywhere", {}), seen=views(MIDDLE)) == ["here", "everywhere"]


def test_without_any_prompt_left_all_count_for_the_whole_tile() -> None:
    """A tile needs a prompt; what else a prompt says of places is still cut."""
    mask, seen = ramp()[0], views(CORNER)
    prompts = [("a", {"area": (2, 2, 0, 0), "mask": mask}), ("b", {"area": AREA_IN_PARTS})]
    found = crop_conditioning(prompts, seen)
    assert [embedding for embedding, _ in found] == ["a", "b"]
    assert all("area" not in extra for _, extra in found)
    assert torch.equal(found[0][1]["mask"], slice_of(mask, CORNER))


def test_no_prompts_stay_none() -> None:
    assert crop_conditioning([], views(MIDDLE)) == []


def test_gligen_boxes_move_and_those_elsewhere_are_left_out() -> None:
    """Boxes are in the units of areas, whatever picture they are cut from."""
    boxes = [("cat", *AREA), ("far", 2, 2, 0, 0), ("dog", 2, 2, 4, 6)]
    found = only({"gligen": ("position", "model", boxes)}, views(MIDDLE))["gligen"]
    assert found == ("position", "model", [("cat", 2, 6, 0, 0), ("dog", 2, 2, 1, 2)])


def test_what_differs_between_tiles_is_refused_in_a_batch_of_them() -> None:
    """One conditioning goes to all tiles of a batch: none of them may get another's region."""
    for key, value in (("area", AREA), ("mask", ramp()[0]), ("gligen", ("position", "m", []))):
        with pytest.raises(InputError, match=rf"batch_size is 2, and positive has .*\({key}\)"):
            require_croppable([("prompt", {key: value})], "positive", 2)
    with pytest.raises(InputError, match="GLIGEN of kind 'batch'"):
        require_croppable([("prompt", {"gligen": ("batch", "m", [])})], "positive", 1)


def control(hint: torch.Tensor | None, before: Any = None, extra: Any = ()) -> Any:
    """ComfyUI's own ControlNet without weights, as its node sets it up."""
    from comfy.controlnet import ControlNet

    found = ControlNet(None)
    found.control_model_wrapped = None
    found.set_cond_hint(hint, 0.7, (0.1, 0.9), extra_concat=list(extra))
    return found.set_previous_controlnet(before)


@crops
def test_hints_of_a_chain_of_controlnets_are_cut(values: ModuleType, crop: Rect) -> None:
    """Each ControlNet of the chain has its own hint, here of the picture before it grew."""
    large, small = ramp(), ramp(WIDTH // 2, HEIGHT // 2)
    chain = control(large, control(small))
    found = only({"control": chain}, views(crop))["control"]
    assert torch.equal(found.cond_hint_original, slice_of(large, crop))
    doubled = slice_of(small, crop, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(found.previous_controlnet.cond_hint_original, doubled)
    assert found.previous_controlnet.previous_controlnet is None
    assert (found.strength, found.timestep_percent_range) == (0.7, (0.1, 0.9))


def test_a_hint_is_as_large_as_the_tile_is_computed(values: ModuleType) -> None:
    """ComfyUI crops a hint of another shape about its middle, which would move it."""
    found = only({"control": control(ramp())}, views(CORNER, size=(80, 64)))["control"]
    doubled = slice_of(ramp(), CORNER).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(found.cond_hint_original, doubled)


def test_the_mask_beside_a_hint_is_cut_and_one_for_everything_is_not(values: ModuleType) -> None:
    """ControlNets that inpaint have a mask beside the hint, or ComfyUI's one pixel."""
    everything = torch.ones(1, 1, 1, 1)
    given = control(None, extra=[ramp(), everything])
    found = only({"control": given}, views(EDGE))["control"]
    assert found.cond_hint_original is None
    assert torch.equal(found.extra_concat_orig[0], slice_of(ramp(), EDGE))
    assert found.extra_concat_orig[1] is everything


def test_what_came_in_is_as_it_was_for_the_next_tile(values: ModuleType) -> None:
    """All tiles are cut from the same conditioning: nothing may be cut in place."""
    before, boxes = control(ramp()), [("cat", *AREA)]
    given = {
        "control": control(ramp(), before),
        "gligen": ("position", "model", boxes),
        "reference_latents": [ramp(16, 12)],
        "area": AREA,
    }
    first = only(given, views(MIDDLE))
    only(given, views(EDGE))
    assert given["area"] == AREA and boxes == [("cat", *AREA)]
    assert torch.equal(given["reference_latents"][0], ramp(16, 12))
    assert given["control"].previous_controlnet is before
    assert torch.equal(before.cond_hint_original, ramp())
    assert torch.equal(first["control"].cond_hint_original, slice_of(ramp(), MIDDLE))


class Patch:
    """As ComfyUI's own control models as patches: encodes its picture when it is made."""

    def __init__(self, vae: str, image: torch.Tensor, inpaint_image: Any, mask: Any = None) -> None:
        self.vae, self.image, self.inpaint_image, self.mask = vae, image, inpaint_image, mask
        self.encoded = self.encode_latent_cond(image)

    def encode_latent_cond(self, image: torch.Tensor) -> torch.Tensor:
        return image * 2


def patched(*patches: Any) -> Any:
    """ComfyUI's own patcher of an empty model, with these patches in two places."""
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    model = ModelPatcher(torch.nn.Module(), load_device=cpu, offload_device=cpu)
    for name in ("double_block", "noise_refiner"):
        for patch in patches:
            model.set_model_patch(patch, name)
    return model


def patches_of(model: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = model.model_options["transformer_options"]["patches"]
    return found


@crops
def test_pictures_in_patches_are_cut_and_encoded_anew(values: ModuleType, crop: Rect) -> None:
    """What a patch made of the whole picture is of no use for a tile."""
    image, other = ramp().movedim(1, -1), lambda *_: None
    given = Patch("vae", image, image + 0.5, ramp()[:, :1])
    model = patched(given, other)
    found = patches_of(crop_model(model, views(crop)))
    cut = found["double_block"][0]
    expected = slice_of(ramp(), crop).movedim(1, -1)
    assert cut.vae == "vae"
    assert torch.equal(cut.image, expected) and torch.equal(cut.encoded, expected * 2)
    assert torch.equal(cut.inpaint_image, expected + 0.5)
    assert torch.equal(cut.mask, slice_of(ramp()[:, :1], crop))
    # One patch in two places stays one, and others are as they were.
    assert found == {"double_block": [cut, other], "noise_refiner": [cut, other]}
    assert patches_of(model)["double_block"] == [given, other] and given.image is image


def test_a_picture_in_a_patch_is_as_large_as_the_tile_is_computed(values: ModuleType) -> None:
    """By the mean of what each new pixel covers, as the patch itself would resize it."""
    model = patched(Patch("vae", ramp().movedim(1, -1), None))
    [cut] = patches_of(crop_model(model, views(MIDDLE, size=(32, 24))))["double_block"]
    x, y = cut.image.movedim(-1, 1)[0]
    assert torch.equal(x[0], torch.arange(32.5, 96, 2)) and torch.equal(x[0], x[-1])
    assert torch.equal(y[:, 0], torch.arange(24.5, 72, 2)) and cut.inpaint_image is None


def test_a_model_without_pictures_is_the_same(values: ModuleType) -> None:
    """A copy would make ComfyUI load it again for each tile."""
    for model in (patched(), patched(lambda *_: None)):
        assert crop_model(model, views(MIDDLE)) is model
