"""The collector: other shares of what is upstream run elsewhere, and all come back as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

from comfy.utils import ProgressBar
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from comfyfleet.comfy import prompts
from comfyfleet.comfy.join import check_parts, join_audio, join_images, list_images
from comfyfleet.comfy.values import unpack
from comfyfleet.errors import ComfyFleetError, InputError, RunError
from comfyfleet.extension.master import master
from comfyfleet.extension.nodes.internal import INTERNAL
from comfyfleet.extension.shares.collection import Collection, Request, linked
from comfyfleet.graph import clone_share, used_outputs

#: The inputs that are collected, in the order of the node.
COLLECTED = ("images", "audio", "value")

#: The collector's outputs, in order.
OUTPUTS = ("images", "audio", "images_list", "values")


def collected_inputs() -> list[Any]:
    """The inputs of a collector; lazy, so that it is asked before anything upstream runs."""
    return [
        io.Image.Input("images", optional=True, lazy=True),
        io.Audio.Input("audio", optional=True, lazy=True),
        io.AnyType.Input("value", optional=True, lazy=True),
    ]


def collected_outputs() -> list[Any]:
    return [
        io.Image.Output(
            "all_images", "images", tooltip="All shares' images as one batch, in share order."
        ),
        io.Audio.Output(
            "all_audio", "audio", tooltip="All shares' sounds, one after another in time."
        ),
        io.Image.Output(
            "images_list", "images_list", is_output_list=True, tooltip="Images share by share."
        ),
        io.AnyType.Output(
            "values", "values", is_output_list=True, tooltip="Values share by share."
        ),
    ]


def _expanded_outputs() -> list[Any]:
    """The outputs of a node that an expansion goes on with.

    One entry each, lists too: ComfyUI strings the entries of an expansion's outputs together, and
    more than one would push the following outputs out of place.
    """
    return [io.AnyType.Output(f"all_{name}", name) for name in OUTPUTS]


class FleetCollector(io.ComfyNode):
    """Run what is upstream once per share, on all devices, and give all results as one batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetCollector",
            display_name="Fleet Collector",
            category="fleet",
            description="Runs everything upstream once per share, each on the next free device, "
            "and gives all results in share order, whoever made them. With a Fleet Seed upstream "
            "every share is another picture.",
            is_input_list=True,
            enable_expand=True,
            inputs=[
                *collected_inputs(),
                io.Int.Input(
                    "shares", default=0, min=0, max=1024, tooltip="0: one for each device."
                ),
                io.Boolean.Input(
                    "delegate",
                    default=False,
                    tooltip="The master computes no share: all run on workers.",
                ),
            ],
            outputs=collected_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def check_lazy_status(
        cls, shares: list[int], delegate: list[bool], **_collected: Any
    ) -> list[str]:
        return ask(cls.hidden, shares[0], delegate[0])

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return missed()

    @classmethod
    async def execute(
        cls, shares: list[int], delegate: list[bool], **collected: Any
    ) -> io.NodeOutput:
        return await collect(cls.hidden, collected)


class FleetCollectBegin(io.ComfyNode):
    """What the shares of a collector need is here: now they begin; expanded by a collector."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetCollectBegin",
            display_name="Fleet Collect Begin (internal)",
            category=INTERNAL,
            description="Sends what is equal for all shares to workers. ComfyFleet adds it by "
            "itself.",
            is_input_list=True,
            enable_expand=True,
            # And value_0, value_1, ..., as many as there are.
            inputs=[
                io.String.Input("collector"),
                # Another one in each run: ComfyUI must never take a result of this from its cache.
                io.String.Input("collection"),
            ],
            outputs=_expanded_outputs(),
        )

    @classmethod
    async def execute(
        cls, collector: list[str], collection: list[str], **values: list[Any]
    ) -> io.NodeOutput:
        begun = master().find(collector[0])
        master().ship(begun, [values[f"value_{i}"] for i in range(len(begun.plan.links))])
        if not begun.begun:
            return compute_first(begun)
        return await advance(begun) if begun.request.delegate else expand(begun, 0)


class FleetCollectNext(io.ComfyNode):
    """A further share that the master computes while it waits; expanded by a collector."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FleetCollectNext",
            display_name="Fleet Collect Next (internal)",
            category=INTERNAL,
            description="A further share on the master. ComfyFleet adds it by itself.",
            is_input_list=True,
            enable_expand=True,
            inputs=[
                io.Image.Input("images", optional=True),
                io.Audio.Input("audio", optional=True),
                io.AnyType.Input("value", optional=True),
                io.String.Input("collector"),
                io.Int.Input("share"),
                # Another one in each run: ComfyUI must never take a result of this from its cache.
                io.String.Input("collection"),
            ],
            outputs=_expanded_outputs(),
        )

    @classmethod
    async def execute(
        cls, collector: list[str], share: list[int], collection: list[str], **collected: Any
    ) -> io.NodeOutput:
        begun = master().find(collector[0])
        begun.add_local(share[0], collected)
        return await advance(begun)


def ask(
    hidden: Any, shares: int, delegate: bool, absent: Mapping[str, Any] | None = None
) -> list[str]:
    """Begin a collector's shares elsewhere; the names of the inputs that the master computes."""
    inputs = linked(hidden.dynprompt.get_node(hidden.unique_id), COLLECTED)
    if not inputs:
        raise InputError(f"nothing is connected: connect one of {', '.join(COLLECTED)}.")
    request = Request(
        node_id=hidden.unique_id,
        inputs=inputs,
        shares=shares,
        delegate=delegate,
        absent=absent or {},
    )
    collection = master().begin(request, prompts.plain_prompt(hidden.dynprompt))
    return [] if collection.plan.links or collection.request.delegate else list(inputs)


async def collect(hidden: Any, collected: Mapping[str, list[Any]]) -> io.NodeOutput:
    """A collector's result: its own share, and all others."""
    collection = master().find(hidden.unique_id)
    if not collection.begun:
        return compute_first(collection)
    if not collection.request.delegate:
        own = {name: collected[name] for name in collection.request.inputs}
        collection.add_local(0, own)
    return await advance(collection)


async def advance(collection: Collection) -> io.NodeOutput:
    """Take the next share if there is one for the master, else wait for the end."""
    bar = ProgressBar(collection.shares)
    while not collection.complete:
        prompts.raise_if_interrupted()
        bar.update_absolute(collection.num_collected, collection.shares)
        share = await asyncio.to_thread(collection.next_share)
        if share is not None:
            return expand(collection, share)
    master().end(collection.request.node_id)
    for files in collection.files():
        master().place(files)
    # Joining copies images and sounds; other values leave shared memory here.
    copy = "value" in collection.request.inputs
    shares = [unpack(packed, copy=copy) for packed in collection.values()]
    check_parts([share.get("images", []) for share in shares], collection.parts())
    used = _used(collection.prompt, collection.request.node_id)
    try:
        outputs = outputs_of(shares, used, collection.request.absent)
    except RunError as error:
        raise RunError(f"{error} {collection.makers}".strip()) from None
    blocked = [isinstance(output, ExecutionBlocker) for output in outputs.args]
    _missing[collection.request.node_id] = frozenset(compress(OUTPUTS, blocked))
    return outputs


def compute_first(collection: Collection) -> io.NodeOutput:
    """ComfyUI's node expansion: what shares need and need not compute, and a node that goes on."""
    node_id, links = collection.request.node_id, collection.plan.links
    going_on = f"{node_id}.values.{len(collection.refused)}"
    inputs: dict[str, Any] = {f"value_{i}": list(link) for i, link in enumerate(links)}
    inputs |= {"collector": node_id, "collection": collection.id}
    nodes = {going_on: {"class_type": "FleetCollectBegin", "inputs": inputs}}
    results = [[going_on, slot] for slot in range(len(OUTPUTS))]
    return io.NodeOutput(*results, expand=nodes)


def expand(collection: Collection, share: int) -> io.NodeOutput:
    """ComfyUI's node expansion: what varies upstream once more, and a node that goes on."""
    node_id = collection.request.node_id
    nodes: dict[str, Any] = {}
    inputs: dict[str, Any] = {"collector": node_id, "share": share, "collection": collection.id}
    prompt, number = collection.seen_by(share)
    for name, link in linked(prompt[node_id], tuple(collection.links)).items():
        source = link
        if share or collection.is_sliced:  # else it is what the prompt says
            clones, source = clone_share(prompt, link, number, f"{node_id}.{share}.")
            nodes.update(clones)
        inputs[name] = list(source)
    going_on = f"{node_id}.{share}"
    nodes[going_on] = {"class_type": "FleetCollectNext", "inputs": inputs}
    results = [[going_on, slot] for slot in range(len(OUTPUTS))]
    return io.NodeOutput(*results, expand=nodes)


def outputs_of(
    shares: list[dict[str, list[Any]]], used: frozenset[str], absent: Mapping[str, Any]
) -> io.NodeOutput:
    """The collector's outputs from its shares, which may be views of memory that is not ours.

    What was not connected, or cannot be joined, is an error if something downstream uses it, and
    blocked if nothing does; see ``missed`` for what happens when it is wired later.
    """
    images = [share.get("images", []) for share in shares]
    audio = [share.get("audio", []) for share in shares]
    values = [value for share in shares for value in share.get("value", [])]
    batch = _output("images", images, join_images, used)
    return io.NodeOutput(
        batch,
        absent["audio"]
        if "audio" in absent and not any(audio)
        else _output("audio", audio, join_audio, used),
        _output("images_list", images, lambda _: list_images(images, batch), used, of="images"),
        _output("values", [values], lambda _: values, used, of="value"),
    )


def _output(
    name: str,
    shares: list[list[Any]],
    join: Callable[[list[list[Any]]], Any],
    used: frozenset[str],
    *,
    of: str = "",
) -> Any:
    try:
        if not any(shares):
            raise InputError(f"output {name} is used, but input {of or name} is not connected.")
        return join(shares)
    except ComfyFleetError as error:
        if name in used:
            raise
        return ExecutionBlocker(str(error))


#: Collector's node id -> outputs that its last execution could not give.
_missing: dict[str, frozenset[str]] = {}


def missed() -> str:
    """A collector's fingerprint: another one when the prompt uses an output that is missing.

    Nothing used it when the collector ran. Without this ComfyUI would take the collector from its
    cache and leave out what depends on the missing output; so it runs again, and says why not.
    """
    node_id = prompts.current_node_id()
    used = _used(prompts.running_prompt(), node_id)
    return " ".join(sorted(used & _missing.get(node_id, frozenset())))


def _used(prompt: Mapping[str, Any], node_id: str) -> frozenset[str]:
    """The collector's outputs that some node of the prompt takes."""
    return frozenset(OUTPUTS[slot] for slot in used_outputs(prompt, node_id))
