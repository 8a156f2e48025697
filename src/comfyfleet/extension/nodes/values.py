"""What differs between shares: seeds, values, names of models.

On a single machine, and for share 0, these nodes give what is written in them. For the other
shares ``graph.vary`` rewrites their inputs before a worker sees them.
"""

from __future__ import annotations

from comfy_api.latest import io

from comfyfleet.errors import InputError
from comfyfleet.graph import VALUE_TYPES, convert, value_lines


class FleetSeed(io.ComfyNode):
    """A seed that is another one for each share: share i gets seed + i."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetSeed",
            display_name="Fleet Seed",
            category="fleet",
            description="A seed that differs between shares: share i of a Fleet Collector gets "
            "seed + i, on whichever worker it runs. Connect it to the seed of a sampler.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The seed of share 0. Raise it by the number of shares for new ones.",
                )
            ],
            outputs=[io.Int.Output("share_seed", "seed")],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(seed)


class FleetValue(io.ComfyNode):
    """A value that is another one for each share: one per line."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetValue",
            display_name="Fleet Value",
            category="fleet",
            description="A value that differs between shares: share i of a Fleet Collector gets "
            "line i; after the last line the first comes again. For prompts, strengths, steps.",
            inputs=[
                io.String.Input("values", multiline=True, tooltip="One value per line."),
                io.Combo.Input(
                    "type", options=list(VALUE_TYPES), tooltip="What each line is converted to."
                ),
            ],
            outputs=[io.AnyType.Output("value", "value")],
        )

    @classmethod
    def validate_inputs(cls, values: str | None = None, type: str | None = None) -> bool | str:
        if values is None or type is None:  # missing, or linked and known when it runs
            return True
        try:
            for line in value_lines(values):
                convert(line, type)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, values: str, type: str) -> io.NodeOutput:
        return io.NodeOutput(convert(value_lines(values)[0], type))


class FleetModelName(io.ComfyNode):
    """A file name as text, for loaders of workers that have a model which the master lacks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetModelName",
            display_name="Fleet Model Name",
            category="fleet",
            description="Names a model for a loader, also one that only the workers have: connect "
            "it to the loader's file name. The loader itself then says if it is missing.",
            is_output_node=True,
            inputs=[io.String.Input("text", tooltip="The name as the loader's list shows it.")],
            outputs=[io.AnyType.Output("output", "output")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(text, ui={"text": [text]})
