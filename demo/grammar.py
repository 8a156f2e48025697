"""The demo model's little world: prompts, pictures, and a checker that looks at pictures.

A `Spec` names one picture: size, colour, shape, place and background.  `prompt` turns it
into words, `draw` into an anti-aliased 128x128 picture, and `check` says from pixels alone
whether a picture shows what a spec asks for.  Only numpy and PIL are used here.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Point = tuple[float, float]

IMAGE_SIZE = 128
SUPERSAMPLE = 4
JITTER_PLACE = 3.0
JITTER_SIZE = 0.06
HELD_OUT_ONE_IN = 8

SIZES: dict[str, float] = {"small": 17.0, "large": 26.0}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 40),
    "green": (36, 160, 64),
    "blue": (36, 80, 220),
    "yellow": (252, 214, 36),
    "orange": (248, 128, 20),
    "purple": (144, 44, 176),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "gray": (136, 136, 136),
}
SHAPE_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
BACKGROUNDS = ("white", "black", "gray", "blue")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PLACES: dict[str, Point] = {
    "top left": (32.0, 32.0),
    "top": (64.0, 32.0),
    "top right": (96.0, 32.0),
    "left": (32.0, 64.0),
    "center": (64.0, 64.0),
    "right": (96.0, 64.0),
    "bottom left": (32.0, 96.0),
    "bottom": (64.0, 96.0),
    "bottom right": (96.0, 96.0),
}
WORDS = tuple(
    dict.fromkeys(
        ["a", "on", *SIZES, *SHAPE_COLOURS, *SHAPES, *" ".join(PLACES).split(), *BACKGROUNDS]
    )
)
"""Every word that a prompt can hold, in a fixed order (token ids are made from it)."""

ALIASES = {
    "an": "a",
    "big": "large",
    "grey": "gray",
    "centre": "center",
    "middle": "center",
    "violet": "purple",
}
"""Other spellings that mean one of `WORDS`."""

RING_HOLE = 0.58
STAR_WAIST = 0.46
CROSS_ARM = 0.34
MIN_CONTRAST = 60.0
MIN_SHAPE_PIXELS = 60
MIN_IOU = 0.7
PROBE = 48


@dataclass(frozen=True)
class Spec:
    """One picture in words; every field is a key of the table of the same name."""

    size: str
    colour: str
    shape: str
    place: str
    background: str


@dataclass(frozen=True)
class Seen:
    """What `look` found in a picture; None where nothing could be told."""

    size: str | None
    colour: str | None
    shape: str | None
    place: str | None
    background: str
    iou: float


@dataclass(frozen=True)
class Verdict:
    """`check`'s answer: one flag for each part of the spec, and what was seen."""

    size: bool
    colour: bool
    shape: bool
    place: bool
    background: bool
    seen: Seen

    @property
    def good(self) -> bool:
        """True if both colour and shape are as asked."""
        return self.colour and self.shape


def all_specs() -> list[Spec]:
    """Every combination whose shape differs in colour from its background, in fixed order."""
    grid = itertools.product(SIZES, SHAPE_COLOURS, SHAPES, PLACES, BACKGROUNDS)
    return [Spec(*parts) for parts in grid if parts[1] != parts[4]]


def is_held_out(spec: Spec) -> bool:
    """True if the spec is kept out of training: one in `HELD_OUT_ONE_IN`, by a fixed hash."""
    text = "|".join(getattr(spec, field.name) for field in fields(spec))
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def training_specs() -> list[Spec]:
    """The specs that training may draw."""
    return [spec for spec in all_specs() if not is_held_out(spec)]


def held_out_specs(count: int, seed: int) -> list[Spec]:
    """`count` different held-out specs, chosen by `seed`."""
    pool = [spec for spec in all_specs() if is_held_out(spec)]
    if count > len(pool):
        raise ValueError(f"{count} held-out specs asked for, there are {len(pool)}; ask for fewer")
    return random.Random(seed).sample(pool, count)


def prompt(spec: Spec, without: frozenset[str] = frozenset()) -> str:
    """The spec in words, for instance "a small red star, top left, on white".

    `without` names fields (size, place, background) to leave unsaid.
    """
    size = "" if "size" in without else spec.size
    article = "an" if (size or spec.colour)[0] in "aeiou" else "a"
    text = " ".join(word for word in (article, size, spec.colour, spec.shape) if word)
    if "place" not in without:
        text += f", {spec.place}"
    if "background" not in without:
        text += f", on {spec.background}"
    return text


def draw(spec: Spec, rng: random.Random | None = None) -> Pixels:
    """The spec as uint8 pixels, shape (128, 128, 3).

    With `rng`, the place moves by up to 3 pixels on each axis and the size by up to 6
    percent; without it, the picture is the ideal one.
    """
    x, y = PLACES[spec.place]
    radius = SIZES[spec.size]
    if rng is not None:
        x += rng.uniform(-JITTER_PLACE, JITTER_PLACE)
        y += rng.uniform(-JITTER_PLACE, JITTER_PLACE)
        radius *= 1.0 + rng.uniform(-JITTER_SIZE, JITTER_SIZE)
    cover = _coverage(spec.shape, (x, y), radius)[..., None]
    front = np.array(COLOURS[spec.colour], np.float32)
    back = np.array(COLOURS[spec.background], np.float32)
    return np.rint(back + (front - back) * cover).astype(np.uint8)


def _coverage(shape: str, centre: Point, radius: float) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, 0 to 1, shape (128, 128)."""
    side = IMAGE_SIZE * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    x, y = centre[0] * SUPERSAMPLE, centre[1] * SUPERSAMPLE
    r = radius * SUPERSAMPLE
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            hole = r * RING_HOLE
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        pen.polygon([(x + u * r, y + v * r) for u, v in _outline(shape)], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLE), np.float32) / 255.0


def _outline(shape: str) -> list[Point]:
    """The corners of a straight-edged shape around (0, 0), about 1 unit in radius."""
    if shape == "square":
        side = 0.88
        return [(-side, -side), (side, -side), (side, side), (-side, side)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "star":
        turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
        reach = [1.04 if i % 2 == 0 else 1.04 * STAR_WAIST for i in range(10)]
        return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(reach, turns, strict=True)]
    if shape == "cross":
        arm = CROSS_ARM
        quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
        turned = [quarter, [(-v, u) for u, v in quarter], [(-u, -v) for u, v in quarter]]
        return [p for part in turned for p in part] + [(v, -u) for u, v in quarter]
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")


def check(image: Pixels, spec: Spec) -> Verdict:
    """Compare uint8 pixels, shape (128, 128, 3), with what `spec` asks for."""
    seen = look(image)
    return Verdict(
        size=seen.size == spec.size,
        colour=seen.colour == spec.colour,
        shape=seen.shape == spec.shape,
        place=seen.place == spec.place,
        background=seen.background == spec.background,
        seen=seen,
    )


def look(image: Pixels) -> Seen:
    """Name what uint8 pixels, shape (128, 128, 3), show, without being told what to expect."""
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image has shape {image.shape} and type {image.dtype}; "
            f"give uint8 pixels of shape ({IMAGE_SIZE}, {IMAGE_SIZE}, 3)"
        )
    pixels = image.astype(np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(edge, axis=0)
    background = _nearest_colour(ground[None])[0]
    colour, mask = _segment(pixels, ground)
    if colour is None:
        return Seen(None, None, None, None, background, 0.0)
    shape, iou = _classify(mask)
    size, place = _measure(mask, shape)
    return Seen(size, colour, shape, place, background, iou)


def _nearest_colour(pixels: NDArray[np.float32]) -> list[str]:
    """The palette's nearest colour name for each row of (n, 3) pixels."""
    table = np.array(list(COLOURS.values()), np.float32)
    distance = np.linalg.norm(pixels[:, None] - table[None], axis=-1)
    names = list(COLOURS)
    return [names[i] for i in distance.argmin(axis=1)]


def _segment(pixels: NDArray[np.float32], ground: NDArray[np.float32]) -> tuple[str | None, Mask]:
    """The commonest colour that is not the ground, and the mask of what lies nearer to it."""
    far = np.linalg.norm(pixels - ground, axis=-1) > MIN_CONTRAST
    if far.sum() < MIN_SHAPE_PIXELS:
        return None, far
    names = np.array(_nearest_colour(pixels[far]))
    found, counts = np.unique(names, return_counts=True)
    colour = str(found[counts.argmax()])
    front = np.median(pixels[far][names == colour], axis=0)
    axis = front - ground
    along = (pixels - ground) @ axis / float(axis @ axis)
    return colour, along > 0.5


def _normalise(mask: Mask) -> NDArray[np.float32]:
    """The mask's bounding box, scaled to fill a (48, 48) square on its longer side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = PROBE / max(box.shape)
    size = (max(1, round(box.shape[1] * scale)), max(1, round(box.shape[0] * scale)))
    small = Image.fromarray(box.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    out = np.zeros((PROBE, PROBE), np.float32)
    top, left = (PROBE - size[1]) // 2, (PROBE - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = np.asarray(small, np.float32) / 255.0
    return out


@cache
def _ideals() -> dict[str, NDArray[np.float32]]:
    """Each shape's normalised ideal mask."""
    centre = (IMAGE_SIZE / 2, IMAGE_SIZE / 2)
    return {s: _normalise(_coverage(s, centre, IMAGE_SIZE / 2.4) > 0.5) for s in SHAPES}


def _classify(mask: Mask) -> tuple[str | None, float]:
    """The shape whose ideal overlaps the mask best, and that overlap (soft IoU, 0 to 1)."""
    probe = _normalise(mask)
    overlap = {
        name: float(np.minimum(probe, ideal).sum() / np.maximum(probe, ideal).sum())
        for name, ideal in _ideals().items()
    }
    best = max(overlap, key=lambda name: overlap[name])
    return (best if overlap[best] >= MIN_IOU else None), overlap[best]


def _measure(mask: Mask, shape: str | None) -> tuple[str, str]:
    """The nearest size and place, from the mask's bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    reach = {"square": 0.88, "star": 0.99}.get(shape or "", 1.0)
    radius = max(np.ptp(rows), np.ptp(columns)) / 2 / reach
    x, y = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
    place = min(PLACES, key=lambda name: math.dist(PLACES[name], (x, y)))
    return size, place
