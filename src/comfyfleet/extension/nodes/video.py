"""Videos upscaled on all devices, in the memory of a few frames."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from comfyfleet.comfy.videos import Reader
from comfyfleet.errors import InputError
from comfyfleet.extension.nodes.upscale import (
    custom_inputs,
    fleet_inputs,
    model_inputs,
    model_upscale_of,
    redraw_of,
    sampling_inputs,
    sampling_of,
    tile_inputs,
)
from comfyfleet.extension.spread.elsewhere import Elsewhere, naming, spread
from comfyfleet.extension.spread.upscaling import enlarged_size, model_part, sample_part
from comfyfleet.extension.spread.video import redraw_video, upscale_video_by_model


class FleetUpscaleVideo(io.ComfyNode):
    """Fleet Ultimate Upscale for a video of any length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetUpscaleVideo",
            display_name="Fleet Ultimate Upscale Video",
            category="fleet",
            description="Redraws a video by tiles on all devices. Frames are read, computed and "
            "written as a stream, so a video of any length fits in memory; its sound stays.",
            enable_expand=True,
            inputs=[
                io.Video.Input("video"),
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                io.Float.Input("upscale_by", default=2.0, min=0.05, max=8.0, step=0.05),
                *sampling_inputs(),
                *tile_inputs(),
                *custom_inputs(),
                *fleet_inputs(),
                io.Int.Input(
                    "segment",
                    optional=True,
                    default=81,
                    min=1,
                    max=4096,
                    tooltip="For models of videos: how many frames are computed together.",
                ),
            ],
            outputs=[io.Video.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, video: Any, upscale_by: float, **inputs: Any) -> io.NodeOutput:
        hidden, segment = cls.hidden, inputs.pop("segment", 81)
        with naming(hidden, "FleetUpscaleVideo"):
            if not upscale_by > 0:
                raise InputError(f"upscale_by is {upscale_by}; give more than 0.")
            if segment < 1:
                raise InputError(f"segment is {segment}; give 1 or more.")
            sampling, how = sampling_of(inputs), redraw_of(inputs)
            reader = Reader(video)
            size = enlarged_size(reader.width, reader.height, upscale_by, how.layout.unit)

        def work(elsewhere: Elsewhere) -> io.NodeOutput:
            made = redraw_video(elsewhere, hidden.unique_id, reader, size, how, sampling, segment)
            return io.NodeOutput(made)

        return spread(hidden, [sample_part(sampling)], work)


class FleetModelUpscaleVideo(io.ComfyNode):
    """Fleet Model Upscale for a video of any length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetModelUpscaleVideo",
            display_name="Fleet Model Upscale Video",
            category="fleet",
            description="Upscales a video by a model on all devices. Frames are read, computed and "
            "written as a stream, so a video of any length fits in memory; its sound stays.",
            enable_expand=True,
            inputs=[
                io.UpscaleModel.Input("upscale_model"),
                io.Video.Input("video"),
                io.Float.Input(
                    "upscale_by",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    tooltip="0: as the model does, else scaled to this.",
                ),
                *model_inputs(),
            ],
            outputs=[io.Video.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, video: Any, upscale_by: float = 0.0, **inputs: Any) -> io.NodeOutput:
        hidden = cls.hidden
        with naming(hidden, "FleetModelUpscaleVideo"):
            if upscale_by < 0:
                raise InputError(f"upscale_by is {upscale_by}; give 0 or more.")
            how = model_upscale_of(inputs)
            reader = Reader(video)
            size = enlarged_size(reader.width, reader.height, upscale_by or how.scale, 2)

        def work(elsewhere: Elsewhere) -> io.NodeOutput:
            made = upscale_video_by_model(elsewhere, hidden.unique_id, reader, size, how)
            return io.NodeOutput(made)

        return spread(hidden, [model_part()], work)
