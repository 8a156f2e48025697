"""A batch in slices: one for each share of a collector."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from comfyfleet.comfy.slices import count_items


class FleetSplit(io.ComfyNode):
    """The slice of a batch that a share works on; without a collector the whole batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetSplit",
            display_name="Fleet Split",
            category="fleet",
            description="Cuts a batch, such as a video's frames, into slices: a Fleet Collector "
            "downstream runs once for each, on whichever device is free, and puts the results "
            "together in order. A faster device takes more of them.",
            is_input_list=True,
            inputs=[
                io.AnyType.Input("batch", tooltip="IMAGE, MASK, LATENT, AUDIO batch, or a list."),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Items in each slice. 0: a few slices for each device.",
                ),
            ],
            outputs=[
                io.AnyType.Output("slice", "slice", is_output_list=True),
                io.Int.Output("index", "index", tooltip="The number of the slice's first item."),
                io.Int.Output("count", "count", tooltip="How many items the slice has."),
            ],
        )

    @classmethod
    def execute(cls, batch: list[Any], size: list[int]) -> io.NodeOutput:
        # A collector puts slices in this node's place; so here nobody wants slices.
        return io.NodeOutput(batch, 0, count_items(batch))
