"""Draw the pictures of docs/upscaling.md with the demo model.

    python scripts/upscaling_pictures.py

A small picture is redrawn by tiles, each time in another mode, by the code that devices run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from comfyfleet.config import demo_dir, find_comfyui

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
#: Of the picture that is redrawn, of its tiles, of the gap between two pictures.
SIDE, TILE, GAP = 384, 96, 8
PROMPT = "a large red star, center, on white"
#: Of waves, one after the other.
COLORS = ((230, 25, 75), (245, 130, 48), (60, 180, 75), (0, 130, 200), (145, 30, 180))


def main() -> None:
    sys.path.insert(0, str(find_comfyui()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    with torch.inference_mode():
        studio = Studio()
        save("upscaling-blend", blends(studio))
        save("upscaling-order", orders(studio))
        save("upscaling-seams", seams(studio))


def blends(studio: Studio) -> list[Image.Image]:
    """The picture as it came, progressive, independent, and ten times the difference."""
    before = studio.picture
    one, other = (studio.redrawn(progressive=progressive)[0] for progressive in (True, False))
    return [image_of(each) for each in (before, one, other, (one - other).abs() * 10)]


def orders(studio: Studio) -> list[Image.Image]:
    """What is computed at the same time: Linear, Chess, independent, and seams with Half Tile."""
    hows: list[dict[str, Any]] = [
        {"mode": "Linear"},
        {"mode": "Chess"},
        {"mode": "Linear", "progressive": False},
        {"mode": "None", "seam_fix": "Half Tile"},
    ]
    return [numbered(*studio.redrawn(**how)) for how in hows]


def seams(studio: Studio) -> list[Image.Image]:
    """Tiles that see nothing around them, then the same with each of the seam fixes."""
    hard = {"padding": 0, "mask_blur": 0, "denoise": 0.25}
    fixes = ("None", "Band Pass", "Half Tile", "Half Tile + Intersections")
    return [image_of(studio.redrawn(seam_fix=fix, **hard)[0]) for fix in fixes]


class Studio:
    """The demo model, its prompts, and a picture that it has drawn, enlarged."""

    def __init__(self) -> None:
        import comfy.sample

        from comfyfleet.comfy.demo_model import load_demo_model
        from comfyfleet.comfy.tiles import resized

        self.model, clip, self.vae = load_demo_model(demo_dir() / "weights.safetensors")
        self.positive, self.negative = (
            clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")
        )
        empty = torch.zeros(1, self.vae.latent_channels, 16, 16)
        latent = comfy.sample.sample(
            self.model, comfy.sample.prepare_noise(empty, 1), 12, 3.0, "euler", "simple",
            self.positive, self.negative, empty, disable_pbar=True, seed=1,
        )  # fmt: skip
        self.picture = resized(self.vae.decode(latent), SIDE, SIDE).clamp(0, 1)

    def redrawn(
        self, *, progressive: bool = True, denoise: float = 0.12, **layout: Any
    ) -> tuple[torch.Tensor, list[list[Any]]]:
        """The picture, and its steps in waves: those that can be computed at the same time."""
        from comfyfleet.comfy.tiles import Sampling
        from comfyfleet.tiles.canvas import Canvas
        from comfyfleet.tiles.steps import Layout

        sampling = Sampling(
            model=self.model, positive=self.positive, negative=self.negative, vae=self.vae, seed=5,
            steps=12, cfg=3.0, sampler_name="euler", scheduler="simple",
        )  # fmt: skip
        how = Layout(**{"tile_width": TILE, "tile_height": TILE, "seam_width": 48, **layout})
        canvas = Canvas(self.picture.clone(), how, progressive=progressive)
        waves = []
        while not canvas.done:
            wave = [canvas.begin() for _ in range(canvas.num_ready)]
            waves.append([canvas.groups[number][0] for number in wave])
            tiles = [self._sampled(canvas, number, sampling, denoise) for number in wave]
            for number, tile in zip(wave, tiles, strict=True):
                canvas.put(number, tile)
        return canvas.pixels, waves

    def _sampled(self, canvas: Any, number: int, sampling: Any, denoise: float) -> Any:
        """What comes of one tile."""
        from comfyfleet.comfy.conditioning import Views
        from comfyfleet.comfy.tiles import group_parcel, sample_parcel

        [step] = canvas.groups[number]
        views = Views(
            crops=(step.crop,), picture=(SIDE, SIDE), original=(SIDE, SIDE), size=step.size,
            unit=canvas.unit, first=0, count=1, total=1,
        )  # fmt: skip
        parcel = group_parcel(canvas.crops(number), views, [0], denoise)
        return sample_parcel(sampling, [parcel], lambda *_: None)[0]


def numbered(picture: torch.Tensor, waves: Sequence[Sequence[Any]]) -> Image.Image:
    """The picture with the number of its wave on each tile; on seams, in the middle of the tile."""
    image = image_of(picture)
    draw = ImageDraw.Draw(image)
    for number, wave in enumerate(waves):
        color = COLORS[number % len(COLORS)]
        for step in wave:
            area = step.area
            at = ((area.left + area.right) / 2, (area.top + area.bottom) / 2)
            if step.kind == "redraw":
                corners = (area.left + 2, area.top + 2, area.right - 3, area.bottom - 3)
                draw.rectangle(corners, outline=color)
                at = (area.left + 16, area.top + 16)
            draw.text(
                at, str(number + 1), color, anchor="mm", font_size=20, stroke_width=3,
                stroke_fill="white",
            )  # fmt: skip
    return image


def image_of(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture[0].clamp(0, 1).mul(255).round().byte().numpy())


def save(name: str, images: Sequence[Image.Image]) -> None:
    """Write images side by side."""
    row = Image.new("RGB", (len(images) * (SIDE + GAP) - GAP, SIDE), "white")
    for at, image in enumerate(images):
        row.paste(image, (at * (SIDE + GAP), 0))
    row.save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
