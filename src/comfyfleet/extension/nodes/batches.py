"""Dividing collected batches again, and a batch of nothing."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from comfyfleet.split import largest_remainder

#: The most parts that a divider has outputs for.
MAX_PARTS = 10


def divide(size: int, parts: int) -> list[slice]:
    """Consecutive slices over ``size`` items for all outputs; those past ``parts`` are empty."""
    sizes = largest_remainder(size, [1.0] * parts) + [0] * (MAX_PARTS - parts)
    ends = [sum(sizes[: i + 1]) for i in range(MAX_PARTS)]
    return [slice(end - length, end) for end, length in zip(ends, sizes, strict=True)]


def _parts_input(what: str) -> io.Int.Input:
    tooltip = f"How many parts the {what} is divided into; further outputs are empty."
    return io.Int.Input("divide_by", default=2, min=1, max=MAX_PARTS, tooltip=tooltip)


class FleetBatchDivider(io.ComfyNode):
    """A batch of images in equal consecutive parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetBatchDivider",
            display_name="Fleet Batch Divider",
            category="fleet",
            description="Divides a batch of images, such as the frames of several videos from a "
            "Fleet Collector, into equal consecutive parts; the first ones take the remainder.",
            inputs=[io.Image.Input("images"), _parts_input("batch")],
            outputs=[io.Image.Output(f"batch_{i + 1}", f"batch_{i + 1}") for i in range(MAX_PARTS)],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, divide_by: int) -> io.NodeOutput:
        return io.NodeOutput(*(images[part] for part in divide(images.shape[0], divide_by)))


class FleetAudioBatchDivider(io.ComfyNode):
    """A sound in equal consecutive parts of its time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetAudioBatchDivider",
            display_name="Fleet Audio Batch Divider",
            category="fleet",
            description="Divides a sound, such as the joined ones from a Fleet Collector, into "
            "parts of equal length in time; the first ones take the remaining samples.",
            inputs=[io.Audio.Input("audio"), _parts_input("sound")],
            outputs=[io.Audio.Output(f"audio_{i + 1}", f"audio_{i + 1}") for i in range(MAX_PARTS)],
        )

    @classmethod
    def execute(cls, audio: dict[str, Any], divide_by: int) -> io.NodeOutput:
        waveform = audio["waveform"]
        parts = divide(waveform.shape[-1], divide_by)
        return io.NodeOutput(*({**audio, "waveform": waveform[..., part]} for part in parts))


class FleetEmptyImage(io.ComfyNode):
    """A batch of no images, of a given size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetEmptyImage",
            display_name="Fleet Empty Image",
            category="fleet",
            description="A batch of zero images: where an input must be connected but nothing "
            "shall be in it.",
            inputs=[
                io.Int.Input("height", default=64, min=1, max=16384),
                io.Int.Input("width", default=64, min=1, max=16384),
                io.Int.Input("channels", default=3, min=1, max=4),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, height: int, width: int, channels: int) -> io.NodeOutput:
        return io.NodeOutput(torch.zeros((0, height, width, channels), dtype=torch.float32))
