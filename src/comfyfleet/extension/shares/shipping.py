"""What this process computes once for units elsewhere, and sends along with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import nodes

from comfyfleet.client.pictures import RETURN_NODE
from comfyfleet.comfy.shipped import digest_of
from comfyfleet.comfy.slices import count_items, slice_items
from comfyfleet.comfy.values import pack
from comfyfleet.errors import InputError
from comfyfleet.graph import (
    BRANCH_CLASS,
    Link,
    as_link,
    border,
    find_splits,
    is_worth_shipping,
    links_of,
    new_id,
    shipped_node,
    slices_nodes,
    stand_in,
    upstream,
    varying_nodes,
)
from comfyfleet.work import Packed

Prompt = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The links whose values are computed here before units can be made."""

    #: Fleet Split -> where its batch comes from.
    splits: Mapping[str, Link] = field(default_factory=dict)
    #: What all units need and need not compute.
    shared: tuple[Link, ...] = ()

    @property
    def links(self) -> tuple[Link, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys([*self.splits.values(), *self.shared]))


@dataclass(frozen=True, slots=True)
class Cargo:
    """Values on their way, and where they stand in prompts."""

    #: Equal for all units: link -> digest.
    shared: Mapping[Link, str] = field(default_factory=dict)
    #: What stands for the outputs of Fleet Splits.
    slices: Mapping[Link, Mapping[str, Any]] = field(default_factory=dict)
    #: Of each share, its digests of its own values; empty without a Fleet Split.
    own: Sequence[Sequence[str]] = ()
    #: Of each share, how many items it has.
    sizes: Sequence[int] = ()
    #: Are all Fleet Splits cut at the same items?
    even: bool = False
    values: Mapping[str, Packed] = field(default_factory=dict)

    def cost_of(self, share: int) -> float:
        """A share's items against those of an average share."""
        return self.sizes[share] * len(self.sizes) / max(1, sum(self.sizes)) if self.sizes else 1.0

    def items_of(self, share: int) -> int:
        """How many items of its slices a share has, if it can be cut between them; else 1."""
        return self.sizes[share] if self.even else 1

    def of_share(self, share: int) -> dict[str, Packed]:
        """What travels with one share's unit."""
        own = self.own[share] if self.own else ()
        return {digest: self.values[digest] for digest in (*self.shared.values(), *own)}


class Unshippable(Exception):
    """The value of this link cannot leave the process after all."""

    def __init__(self, link: Link) -> None:
        self.link = link
        super().__init__(link)


def travels_in(prompt: Prompt, refused: Iterable[Link] = ()) -> Callable[[Link], bool]:
    """Whether a link's value is worth shipping, by its declared type; refused ones are not."""
    never = frozenset(refused)

    def travels(link: Link) -> bool:
        declared = declared_type(prompt, link)
        return link not in never and is_worth_shipping(prompt[link[0]], declared)

    return travels


def declared_type(prompt: Prompt, link: Link) -> Any:
    """The type of a link as the node's class declares it; None if it has none."""
    node, slot = prompt[link[0]], link[1]
    source = as_link(node["inputs"].get("value"))
    if node["class_type"] == BRANCH_CLASS and source is not None:
        return declared_type(prompt, source)
    cls = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
    types = getattr(cls, "RETURN_TYPES", ())
    return types[slot] if slot < len(types) else None


def with_return(prompt: Prompt, inputs: Mapping[str, Link]) -> tuple[dict[str, Any], str]:
    """The prompt with a node that returns these inputs, and that node's id."""
    sink_id = new_id(prompt, "return")
    links = {name: list(link) for name, link in inputs.items()}
    return {**prompt, sink_id: {"class_type": RETURN_NODE, "inputs": links}}, sink_id


def plan_shares(
    prompt: Prompt, inputs: Mapping[str, Link], *, ships: bool, refused: Iterable[Link] = ()
) -> Plan:
    """What shares of everything upstream of these links need; ``ships``: some run elsewhere."""
    splits = find_splits(prompt, [link[0] for link in inputs.values()])
    if not ships:
        return Plan(splits)
    whole, sink_id = with_return(prompt, inputs)
    unknown = {link: node for each in splits for link, node in slices_nodes(each, []).items()}
    piece = upstream(stand_in(whole, unknown), [sink_id])
    moving = varying_nodes(piece) - {sink_id}
    # What does not vary and is collected nevertheless is each share's own work.
    collected = {source for source, _ in links_of(piece[sink_id]).values()}
    moving |= set(upstream(piece, collected - moving))
    return Plan(splits, tuple(border(piece, moving, travels_in(piece, refused))))


def load(
    plan: Plan,
    values: Mapping[Link, Sequence[Any]],
    bounds_of: Callable[[str, int], Sequence[tuple[int, int]]],
) -> Cargo:
    """Pack what was computed. ``bounds_of``: a split and its number of items -> its slices.

    Raises Unshippable for a value that cannot leave the process although its type can, InputError
    for slices that cannot, or that do not fit together.
    """
    packed: dict[str, Packed] = {}
    shared = {link: _load_shared(packed, values[link], link) for link in plan.shared}
    bounds = {
        split_id: bounds_of(split_id, count_items(values[link]))
        for split_id, link in plan.splits.items()
    }
    _require_equal({split_id: len(each) for split_id, each in bounds.items()})
    cuts = {
        split_id: [_cut(packed, values[link], *each) for each in bounds[split_id]]
        for split_id, link in plan.splits.items()
    }
    slices: dict[Link, Mapping[str, Any]] = {}
    for split_id, shares in cuts.items():
        slices |= slices_nodes(split_id, shares)
    own = [list(chain.from_iterable(share)) for share in zip(*cuts.values(), strict=True)]
    sizes = [stop - start for start, stop in next(iter(bounds.values()), ())]
    even = len(set(map(tuple, bounds.values()))) == 1
    return Cargo(shared, slices, own, sizes, even, packed)


def _load_shared(packed: dict[str, Packed], entries: Sequence[Any], link: Link) -> str:
    try:
        return _keep(packed, entries)
    except InputError:
        raise Unshippable(link) from None


def _cut(packed: dict[str, Packed], entries: Sequence[Any], start: int, stop: int) -> list[str]:
    """The digests of what a Fleet Split gives for one slice."""
    outputs = (slice_items(entries, start, stop), [start], [stop - start])
    return [_keep(packed, output) for output in outputs]


def _require_equal(counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        found = ", ".join(f"node {split_id} makes {count}" for split_id, count in counts.items())
        raise InputError(
            f"the Fleet Splits upstream of one collector give different numbers of shares: {found}."
            " Give them batches of one length and the same size."
        )


def _keep(packed: dict[str, Packed], entries: Sequence[Any]) -> str:
    value = pack(list(entries), "a value for the workers")
    digest = digest_of(value)
    packed[digest] = value
    return digest


def with_shipped(prompt: Prompt, shared: Mapping[Link, str], sink_id: str) -> dict[str, Any]:
    """What a unit runs: the prompt up to its sink, with shipped values in place of these links."""
    standing = {link: shipped_node(digest) for link, digest in shared.items()}
    return upstream(stand_in(prompt, standing), [sink_id])
