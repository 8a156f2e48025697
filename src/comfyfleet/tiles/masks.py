"""How strongly a step is drawn at each pixel that it may change: soft masks of its own size.

Nothing here is as large as the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from comfyfleet.tiles.geometry import Rect
from comfyfleet.tiles.steps import Step, reach_of


def mask_of(step: Step, whole: Rect) -> torch.Tensor:
    """The weights of ``step.reach``, [height, width], float32, 0 to 1.

    Flat masks of a grid of tiles sum to one everywhere, as their soft edges complement each other.
    At the picture's own edges a mask does not fade.
    """
    margin = reach_of(step.blur)
    kernel = _gaussian(step.blur)
    if step.shape == "radial":
        soft = _blurred(_blurred(_radial(step.area, whole, margin), kernel).T, kernel).T
    else:
        vertical = _profile(step.area.top, step.area.bottom, whole.bottom, margin)
        horizontal = _profile(step.area.left, step.area.right, whole.right, margin)
        if step.shape == "rows":
            vertical = vertical * _ramp(step.area.height, margin)
        if step.shape == "columns":
            horizontal = horizontal * _ramp(step.area.width, margin)
        lines = [_blurred(line[None], kernel)[0] for line in (vertical, horizontal)]
        soft = torch.outer(*lines)
    part = step.reach.moved(step.area.left - margin, step.area.top - margin)
    return soft[part.top : part.bottom, part.left : part.right].float()


def _profile(begin: int, end: int, length: int, margin: int) -> torch.Tensor:
    """1 inside, 0 outside; beyond the picture's edges as at them. With two margins on each side."""
    at = torch.arange(begin - 2 * margin, end + 2 * margin).clamp(0, length - 1)
    return ((at >= begin) & (at < end)).double()


def _ramp(length: int, margin: int) -> torch.Tensor:
    """Up to 1 in the middle, and down."""
    half = length // 2
    up = (torch.arange(half, dtype=torch.float64) + 0.5) / half
    rest = torch.zeros(length - 2 * half, dtype=torch.float64)
    return F.pad(torch.cat([up, up.flip(0), rest]), (2 * margin, 2 * margin))


def _radial(area: Rect, whole: Rect, margin: int) -> torch.Tensor:
    """1 in the middle, 0 at the ellipse that touches the sides, and outside of the picture."""
    lines = []
    for begin, end, length in (
        (area.top, area.bottom, whole.bottom),
        (area.left, area.right, whole.right),
    ):
        at = torch.arange(begin - 2 * margin, end + 2 * margin, dtype=torch.float64)
        lines.append((2 * (at.clamp(0, length - 1) - begin) + 1) / (end - begin) - 1)
    distance = torch.sqrt(lines[0][:, None] ** 2 + lines[1][None, :] ** 2)
    return (1 - distance).clamp(min=0)


def _gaussian(blur: int) -> torch.Tensor:
    """A kernel of this standard deviation that sums to one; of one value without blur."""
    reach = reach_of(blur)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(at**2) / (2 * blur**2)) if blur else torch.ones_like(at)
    return kernel / kernel.sum()


def _blurred(lines: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Each line convolved; shorter by the kernel's reach on both sides."""
    return F.conv1d(lines[:, None], kernel[None, None])[:, 0]
