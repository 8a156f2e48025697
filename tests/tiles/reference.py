"""Ultimate SD Upscale on one device, as its author describes it, on whole pictures.

No step knows of another's place: each makes a mask as large as the picture, crops, computes and
composites, one after the other. Slow, and easy to compare with the public algorithm
(github.com/Coyote-A/ultimate-upscale-for-automatic1111).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageFilter


def redraw_linear(picture, compute, *, tile, padding, blur, uniform=True):
    """``picture``: [1, H, W, 3]; ``compute``: a crop and its size (width, height) -> the tile.

    ``tile``: its width and height.
    """
    picture = picture.clone()
    height, width = picture.shape[1:3]
    for row in range(math.ceil(height / tile[1])):
        for column in range(math.ceil(width / tile[0])):
            left, top = column * tile[0], row * tile[1]
            mask = np.zeros((height, width), np.float32)
            mask[top : top + tile[1], left : left + tile[0]] = 1
            picture = step(picture, mask, compute, tile, padding, blur, uniform)
    return picture


def step(picture, mask, compute, tile, padding, blur, uniform):
    height, width = mask.shape
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    left, top = max(columns[0] - padding, 0), max(rows[0] - padding, 0)
    right, bottom = min(columns[-1] + 1 + padding, width), min(rows[-1] + 1 + padding, height)
    if uniform:
        size = tuple(math.ceil((side + padding) / 8) * 8 for side in tile)
        ratio = size[0] / size[1]
        if (right - left) / (bottom - top) > ratio:
            wanted = (right - left, round((right - left) / ratio))
        else:
            wanted = (round((bottom - top) * ratio), bottom - top)
    else:
        size = wanted = (math.ceil((right - left) / 8) * 8, math.ceil((bottom - top) / 8) * 8)
    left, right = expand(left, right, wanted[0], width)
    top, bottom = expand(top, bottom, wanted[1], height)
    tile_pixels = compute(picture[:, top:bottom, left:right], size)
    soft = blurred(mask, blur)
    inside = np.zeros_like(soft)
    inside[top:bottom, left:right] = soft[top:bottom, left:right]
    whole = torch.zeros_like(picture)
    whole[:, top:bottom, left:right] = tile_pixels
    weight = torch.from_numpy(inside)[None, :, :, None]
    return picture + weight * (whole - picture)


def expand(begin, end, length, limit):
    end = min(end + (length - (end - begin)) // 2, limit)
    begin = max(begin - (length - (end - begin)), 0)
    end = min(end + (length - (end - begin)), limit)
    return begin, end


def blurred(mask, sigma):
    """Convolved with a Gaussian of three standard deviations, edges repeated."""
    if not sigma:
        return mask
    at = np.arange(-3 * sigma, 3 * sigma + 1)
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        margins = [(3 * sigma, 3 * sigma) if axis == each else (0, 0) for each in (0, 1)]
        padded = np.pad(mask.astype(np.float64), margins, mode="edge")
        mask = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    return mask.astype(np.float32)


def blurred_by_pillow(mask, sigma):
    """As the original blurs it: in 8 bits, by Pillow's own approximation of a Gaussian."""
    image = Image.fromarray((mask * 255).astype(np.uint8), "L")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))).astype(np.float32) / 255
