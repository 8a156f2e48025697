"""Nodes that only ComfyFleet puts into graphs, for work that is spread over devices."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import comfy.utils
from comfy_api.latest import io

from comfyfleet.comfy.tiles import Sampling, sample_parcel
from comfyfleet.extension.nodes.internal import INTERNAL
from comfyfleet.extension.spread.elsewhere import arrive
from comfyfleet.extension.spread.upscaling import MODEL_NODE, SAMPLE_NODE, upscale_tiles


class FleetSpread(io.ComfyNode):
    """What the devices need is here: now the node that was waiting for it works."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetSpread",
            display_name="Fleet Spread (internal)",
            category=INTERNAL,
            description="Spreads a node's work over all devices. ComfyFleet adds it by itself.",
            is_input_list=True,
            enable_expand=True,
            # And value_0, value_1, ..., as many as there are.
            inputs=[io.String.Input("job")],
            outputs=[io.AnyType.Output("whole", "whole")],
        )

    @classmethod
    def execute(cls, job: list[str], **values: list[Any]) -> io.NodeOutput:
        return arrive(job[0], [values[f"value_{i}"] for i in range(len(values))])


class FleetSampleTiles(io.ComfyNode):
    """Tiles of a picture through a sampler, on a worker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=SAMPLE_NODE,
            display_name="Fleet Sample Tiles (internal)",
            category=INTERNAL,
            description="Computes tiles for an upscale. ComfyFleet adds it by itself.",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                io.Int.Input("seed", min=0, max=2**64 - 1),
                io.Int.Input("steps"),
                io.Float.Input("cfg"),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS),
                io.Boolean.Input("tiled_decode"),
                io.AnyType.Input("task"),
                io.Sampler.Input("custom_sampler", optional=True),
                io.Sigmas.Input("custom_sigmas", optional=True),
            ],
            outputs=[io.AnyType.Output("tiles", "tiles")],
        )

    @classmethod
    def execute(cls, task: list[Any], **sampling: Any) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(1)

        def tell(step: int, total: int) -> None:
            bar.update_absolute(step, total)

        return io.NodeOutput(sample_parcel(Sampling(**sampling), task, tell))


class FleetUpscaleTiles(io.ComfyNode):
    """Tiles of a picture through an upscale model, on a worker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=MODEL_NODE,
            display_name="Fleet Upscale Tiles (internal)",
            category=INTERNAL,
            description="Computes tiles for an upscale by a model. ComfyFleet adds it by itself.",
            inputs=[io.UpscaleModel.Input("upscale_model"), io.AnyType.Input("task")],
            outputs=[io.AnyType.Output("tiles", "tiles")],
        )

    @classmethod
    def execute(cls, upscale_model: Any, task: list[Any]) -> io.NodeOutput:
        return io.NodeOutput(upscale_tiles(upscale_model, task))
