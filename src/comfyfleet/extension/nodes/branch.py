"""A branch of a prompt on a worker, while the rest goes on here."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from comfyfleet.comfy import prompts
from comfyfleet.comfy.values import unpack
from comfyfleet.errors import ComfyFleetError
from comfyfleet.extension.master import master
from comfyfleet.extension.nodes.internal import INTERNAL
from comfyfleet.extension.shares.branches import open_branch
from comfyfleet.extension.shares.collection import Collection
from comfyfleet.graph import Link, as_link

logger = logging.getLogger(__name__)

#: Types of which it is certain that they live in one process.
_STAYING = {
    *("CLIP", "CLIP_VISION", "CONTROL_NET", "GLIGEN", "GUIDER", "HOOKS", "MODEL", "NOISE"),
    *("SAMPLER", "STYLE_MODEL", "UPSCALE_MODEL", "VAE"),
}


class FleetBranch(io.ComfyNode):
    """What is upstream runs on a worker, while the rest of the prompt goes on here."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetBranch",
            display_name="Fleet Branch",
            category="fleet",
            description="What only this value needs is computed on a free worker, while the rest "
            "of the workflow goes on here. What others need too is computed once, here.",
            is_input_list=True,
            enable_expand=True,
            inputs=[
                # Lazy, and never asked for: a worker computes it.
                io.AnyType.Input(
                    "value",
                    lazy=True,
                    tooltip="The end of the branch: any type but "
                    "those that live in one process, such as MODEL.",
                )
            ],
            outputs=[io.AnyType.Output("branch_value", "value", is_output_list=True)],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, input_types: Any) -> bool | str:
        # ComfyUI gives what it validates of a node with list inputs in a list.
        types = input_types[0] if isinstance(input_types, list) else input_types
        if types.get("value") not in _STAYING:
            return True
        return (
            f"value is a {types['value']}, which cannot leave the process that made it: put Fleet "
            "Branch behind the node that uses it, such as a sampler or a decoder."
        )

    @classmethod
    def check_lazy_status(cls, **_inputs: Any) -> list[str]:
        return []

    @classmethod
    async def execute(cls, value: Any = None) -> io.NodeOutput:
        # A coroutine: ComfyUI runs these first, so that the branch is on its way when it goes on.
        node_id, prompt = cls.hidden.unique_id, prompts.plain_prompt(cls.hidden.dynprompt)
        link = as_link(prompt[node_id]["inputs"]["value"])
        if link is None:
            return io.NodeOutput(value)
        branch = open_branch(node_id, link, prompt)
        if branch is None:
            return compute_here(node_id, link)
        master().keep(branch)
        return compute_elsewhere(branch)


class FleetBranchRun(io.ComfyNode):
    """A branch that has all it takes along; expanded by a Fleet Branch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetBranchRun",
            display_name="Fleet Branch Run (internal)",
            category=INTERNAL,
            description="Sends a branch to a worker. ComfyFleet adds it by itself.",
            is_input_list=True,
            enable_expand=True,
            # And value_0, value_1, ..., as many as there are.
            inputs=[
                io.String.Input("branch"),
                # Another one in each run: ComfyUI must never take a result of this from its cache.
                io.String.Input("collection"),
            ],
            # One entry, a list too; see ``collector``.
            outputs=[io.AnyType.Output("branch_value", "value")],
        )

    @classmethod
    async def execute(
        cls, branch: list[str], collection: list[str], **values: list[Any]
    ) -> io.NodeOutput:
        opened = master().find(branch[0])
        fleet = master().fleet_if_idle()
        if fleet is None:
            master().end(branch[0])
            return compute_here(branch[0], opened.request.inputs["value"])
        known = [values[f"value_{i}"] for i in range(len(opened.plan.links))]
        master().ship(opened, known, lambda: fleet)
        return await result_of(opened) if opened.begun else compute_elsewhere(opened)


class FleetBranchHere(io.ComfyNode):
    """A branch that is computed here after all; expanded by a Fleet Branch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetBranchHere",
            display_name="Fleet Branch Here (internal)",
            category=INTERNAL,
            description="A branch without a free worker. ComfyFleet adds it by itself.",
            is_input_list=True,
            inputs=[io.AnyType.Input("value")],
            outputs=[io.AnyType.Output("branch_value", "value")],
        )

    @classmethod
    def execute(cls, value: list[Any]) -> io.NodeOutput:
        return io.NodeOutput(value)


def compute_here(node_id: str, link: Link) -> io.NodeOutput:
    """The value as ComfyUI computes it without the node."""
    return _going_on(f"{node_id}.here", "FleetBranchHere", {"value": list(link)}, link)


def compute_elsewhere(branch: Collection) -> io.NodeOutput:
    """What the branch takes along is computed, and then a node goes on."""
    node_id = branch.request.node_id
    inputs: dict[str, Any] = {f"value_{i}": list(link) for i, link in enumerate(branch.plan.links)}
    inputs |= {"branch": node_id, "collection": branch.id}
    name = f"{node_id}.run.{len(branch.refused)}"
    return _going_on(name, "FleetBranchRun", inputs, branch.request.inputs["value"])


def _going_on(name: str, class_type: str, inputs: dict[str, Any], link: Link) -> io.NodeOutput:
    """An expansion of one node, which clients are shown as the branch's last node."""
    node = {"class_type": class_type, "inputs": inputs, "override_display_id": link[0]}
    return io.NodeOutput([name, 0], expand={name: node})


async def result_of(branch: Collection) -> io.NodeOutput:
    """Wait for what the worker computes. Raises what it failed with; the user may cancel."""
    node_id = branch.request.node_id
    while not branch.complete:
        prompts.raise_if_interrupted()
        try:
            await asyncio.to_thread(branch.next_share)
        except ComfyFleetError as error:  # no fleet can be started, or none that has its nodes
            logger.warning("node %s: the branch is computed here: %s", node_id, error)
            master().end(node_id)
            return compute_here(node_id, branch.request.inputs["value"])
    master().end(node_id)
    for files in branch.files():
        master().place(files)
    if branch.is_blocked:
        return io.NodeOutput(ExecutionBlocker(None))
    (share,) = branch.values()
    return io.NodeOutput(unpack(share)["value"])
