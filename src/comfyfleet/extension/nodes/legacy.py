"""The node ids of ComfyUI-Distributed, so that workflows saved with it open unchanged.

Same ids, inputs and outputs; the work is done by our own nodes. Only ids that no other pack has
registered are taken (see ``extension.entry``).
"""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io

from comfyfleet.errors import InputError
from comfyfleet.extension.master import master
from comfyfleet.extension.nodes.batches import (
    FleetAudioBatchDivider,
    FleetBatchDivider,
    FleetEmptyImage,
)
from comfyfleet.extension.nodes.collector import ask, collect, missed
from comfyfleet.extension.nodes.upscale import NO_SEAM_FIX, sampling_inputs, upscale
from comfyfleet.extension.nodes.values import FleetModelName, FleetSeed
from comfyfleet.extension.spread.elsewhere import naming
from comfyfleet.graph import convert


def _renamed(schema: io.Schema, node_id: str, display_name: str) -> io.Schema:
    schema.node_id = node_id
    schema.display_name = display_name
    schema.category = "fleet/ComfyUI-Distributed"
    schema.is_deprecated = True
    return schema


class DistributedSeed(FleetSeed):
    """Fleet Seed under its old id."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _renamed(super().define_schema(), "DistributedSeed", "Distributed Seed")


class DistributedModelName(FleetModelName):
    """Fleet Model Name under its old id."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _renamed(super().define_schema(), "DistributedModelName", "Distributed Model Name")


class DistributedEmptyImage(FleetEmptyImage):
    """Fleet Empty Image under its old id."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _renamed(super().define_schema(), "DistributedEmptyImage", "Distributed Empty Image")


class ImageBatchDivider(FleetBatchDivider):
    """Fleet Batch Divider under its old id."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = _renamed(super().define_schema(), "ImageBatchDivider", "Image Batch Divider")
        schema.is_output_node = True
        return schema


class AudioBatchDivider(FleetAudioBatchDivider):
    """Fleet Audio Batch Divider under its old id."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = _renamed(super().define_schema(), "AudioBatchDivider", "Audio Batch Divider")
        schema.is_output_node = True
        return schema


class DistributedValue(io.ComfyNode):
    """A value per share, in the old form: a default, and a JSON object by worker number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="DistributedValue",
            description="A value that differs between shares. Fleet Value does it with one value "
            "per line.",
            inputs=[
                io.String.Input("default_value", default=""),
                io.String.Input("worker_values", default="{}"),
            ],
            outputs=[io.AnyType.Output("value", "value")],
        )
        return _renamed(schema, "DistributedValue", "Distributed Value")

    @classmethod
    def execute(cls, default_value: str, worker_values: str) -> io.NodeOutput:
        return io.NodeOutput(_old_value(default_value, _old_type(worker_values)))


class DistributedCollector(io.ComfyNode):
    """Fleet Collector in the old form: one share per device."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="DistributedCollector",
            description="Runs what is upstream once per device and joins the results. Fleet "
            "Collector does it for any number of shares and any type.",
            is_input_list=True,
            enable_expand=True,
            inputs=[
                io.Image.Input("images", lazy=True),
                io.Boolean.Input(
                    "load_balance",
                    default=False,
                    tooltip="Run once, on a worker that is free, instead of once per device.",
                ),
                io.Audio.Input("audio", optional=True, lazy=True),
            ],
            outputs=[
                io.Image.Output("all_images", "images"),
                io.Audio.Output("all_audio", "audio"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )
        return _renamed(schema, "DistributedCollector", "Distributed Collector")

    @classmethod
    def check_lazy_status(cls, load_balance: list[bool], **_collected: Any) -> list[str]:
        delegate = load_balance[0] and master().has_workers
        return ask(cls.hidden, int(load_balance[0]), delegate, absent={"audio": _silence()})

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return missed()

    @classmethod
    async def execute(cls, load_balance: list[bool], **collected: Any) -> io.NodeOutput:
        outputs = await collect(cls.hidden, collected)
        return io.NodeOutput(*outputs.args[:2], expand=outputs.expand)


class UltimateSDUpscaleDistributed(io.ComfyNode):
    """Fleet Ultimate Upscale in the old form: a picture of its final size, and its own inputs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        name = "Ultimate SD Upscale Distributed (No Upscale)"
        schema = io.Schema(
            node_id="UltimateSDUpscaleDistributed",
            description="Redraws a picture by tiles on all devices. Fleet Ultimate Upscale has all "
            "inputs of Ultimate SD Upscale.",
            enable_expand=True,
            inputs=[
                io.Image.Input("upscaled_image"),
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                *sampling_inputs(denoise=0.5),
                io.Int.Input("tile_width", default=512, min=64, max=2048, step=8),
                io.Int.Input("tile_height", default=512, min=64, max=2048, step=8),
                io.Int.Input("padding", default=32, min=0, max=256, step=8),
                io.Int.Input("mask_blur", default=8, min=0, max=256),
                io.Boolean.Input("force_uniform_tiles", default=True),
                io.Boolean.Input("tiled_decode", default=False),
                # In workflows of its first versions.
                io.Boolean.Input("static_distribution", default=False, optional=True),
            ],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )
        return _renamed(schema, "UltimateSDUpscaleDistributed", name)

    @classmethod
    def execute(
        cls, upscaled_image: Any, padding: int, static_distribution: bool = False, **inputs: Any
    ) -> io.NodeOutput:
        rest = {
            "mode_type": "Linear",
            "tile_padding": padding,
            "batch_size": 1,
            "distribution": "static" if static_distribution else "dynamic",
            **NO_SEAM_FIX,
        }
        with naming(cls.hidden, "UltimateSDUpscaleDistributed"):
            return upscale(cls.hidden, {**inputs, **rest}, upscaled_image, 1.0)


def _silence() -> dict[str, Any]:
    """What the old node gave where no sound was connected: one sample of silence."""
    return {"waveform": torch.zeros(1, 2, 1), "sample_rate": 44100}


def _old_type(worker_values: str) -> str:
    try:
        return str(json.loads(worker_values or "{}").get("_type", "STRING"))
    except (json.JSONDecodeError, AttributeError):
        raise InputError(
            f"worker_values {worker_values!r} is no JSON object such as "
            '{"1": "second value", "_type": "STRING"}.'
        ) from None


def _old_value(text: str, type: str) -> Any:
    if type == "INT":
        return int(convert(text, "FLOAT"))
    # COMBO and whatever else the old page wrote there is text.
    return convert(text, type if type == "FLOAT" else "STRING")


LEGACY_NODES: list[type[io.ComfyNode]] = [
    DistributedCollector,
    DistributedSeed,
    DistributedValue,
    DistributedModelName,
    DistributedEmptyImage,
    ImageBatchDivider,
    AudioBatchDivider,
    UltimateSDUpscaleDistributed,
]
