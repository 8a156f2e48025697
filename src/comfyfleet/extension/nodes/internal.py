"""Nodes that only ComfyFleet puts into graphs. Nobody needs to place them by hand."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from comfyfleet.comfy import returns, shipped
from comfyfleet.comfy.slices import part_of

#: Where ComfyUI's menu shows them, after everything that a user looks for.
INTERNAL = "fleet/internal"


class FleetReturn(io.ComfyNode):
    """The end of a unit's graph: keeps what arrives in the worker's memory, as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetReturn",
            display_name="Fleet Return (internal)",
            category=INTERNAL,
            description="Ends a unit's graph on a worker. ComfyFleet adds it by itself.",
            is_output_node=True,
            is_input_list=True,
            not_idempotent=True,
            inputs=[
                io.String.Input("comfyfleet_attempt", default=""),
                io.Image.Input("images", optional=True),
                io.Audio.Input("audio", optional=True),
                io.AnyType.Input("value", optional=True),
            ],
        )

    @classmethod
    def execute(cls, comfyfleet_attempt: list[str], **values: list[Any]) -> io.NodeOutput:
        returns.deposit(comfyfleet_attempt[0], values)
        return io.NodeOutput()


class FleetSeedOffset(io.ComfyNode):
    """A seed that comes from another node, moved on by a share's number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetSeedOffset",
            display_name="Fleet Seed Offset (internal)",
            category=INTERNAL,
            description="A linked Fleet Seed inside a share. ComfyFleet adds it by itself.",
            inputs=[
                io.Int.Input("seed", min=0, max=2**64 - 1),
                io.Int.Input("offset", min=0, max=2**64 - 1),
            ],
            outputs=[io.Int.Output("share_seed", "seed")],
        )

    @classmethod
    def execute(cls, seed: int, offset: int) -> io.NodeOutput:
        return io.NodeOutput((seed + offset) % 2**64)


class FleetShipped(io.ComfyNode):
    """A value that was computed elsewhere; ComfyUI's cache knows it by its digest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetShipped",
            display_name="Fleet Shipped (internal)",
            category=INTERNAL,
            description="A value that came with a unit. ComfyFleet adds it by itself.",
            inputs=[io.String.Input("digest")],
            outputs=[io.AnyType.Output("value", "value", is_output_list=True)],
        )

    @classmethod
    def execute(cls, digest: str) -> io.NodeOutput:
        return io.NodeOutput(shipped.take(digest))


class FleetPart(io.ComfyNode):
    """Some items of a slice that needs too much memory as a whole."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetPart",
            display_name="Fleet Part (internal)",
            category=INTERNAL,
            description="A part of a Fleet Split's slice. ComfyFleet adds it by itself.",
            is_input_list=True,
            inputs=[
                io.AnyType.Input("value"),
                io.Int.Input("slot", min=0, max=2),
                io.Int.Input("first", min=0),
                io.Int.Input("last", min=0),
            ],
            outputs=[io.AnyType.Output("part", "part", is_output_list=True)],
        )

    @classmethod
    def execute(
        cls, value: list[Any], slot: list[int], first: list[int], last: list[int]
    ) -> io.NodeOutput:
        return io.NodeOutput(part_of(value, slot[0], first[0], last[0]))
