"""Shares that are slices of one batch: which Fleet Splits decide about a collector's shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfyfleet.errors import InputError
from comfyfleet.graph.border import stand_in
from comfyfleet.graph.prompt import Link, Prompt, as_link, links_of
from comfyfleet.graph.vary import SLICES_CLASS

SPLIT_CLASS = "FleetSplit"
#: A collector has slices of its own: what is split upstream of it does not concern a later one.
COLLECTOR_CLASSES = frozenset({"DistributedCollector", "FleetCollector"})
#: The outputs of a Fleet Split: the slice, the number of its first item, how many there are.
NUM_SPLIT_OUTPUTS = 3

#: Internal node: what one of these outputs (``slot``) is for some items of the slice.
PART_CLASS = "FleetPart"

#: Chosen sizes (guided self-scheduling): each slice is a third of every device's share of what is
#: left. So a fast device can take more of them than a slow one, and the last are single items, for
#: which nobody waits long. Simulated devices of unequal speed ended sooner so than with halves or
#: quarters.
PARTS_PER_DEVICE = 3
MAX_CHOSEN_SIZE = 16


def find_splits(prompt: Prompt, targets: Iterable[str]) -> dict[str, Link]:
    """Return the splits that targets depend on, and where the batch of each comes from."""
    found: dict[str, Link] = {}
    seen: set[str] = set()
    waiting = list(targets)
    while waiting:
        node_id = waiting.pop()
        if node_id in seen or node_id not in prompt:
            continue
        seen.add(node_id)
        node = prompt[node_id]
        batch = as_link(node.get("inputs", {}).get("batch"))
        if node.get("class_type") == SPLIT_CLASS and batch is not None:
            found[node_id] = batch
        elif node.get("class_type") not in COLLECTOR_CLASSES:
            waiting += (source for source, _ in links_of(node).values())
    return {node_id: found[node_id] for node_id in prompt if node_id in found}


def slice_bounds(total: int, size: object, *, shares: int, devices: int) -> list[tuple[int, int]]:
    """Return first and last + 1 of each slice of ``total`` items.

    With ``size`` 0 there are ``shares`` equal slices, and with both 0 ever smaller ones.
    Raises InputError if there must be ``shares`` slices and are not, or if the size is no number.
    """
    if not isinstance(size, int):
        raise InputError("input 'size' is linked, but must be known first; type it into the node.")
    if size:
        count = max(1, -(-total // size))
        if shares not in (0, count):
            raise InputError(
                f"shares is {shares}, but {total} items in slices of {size} are {count} shares: "
                f"set the collector's shares to 0 or {count}, or the split's size to 0."
            )
        return [(i * size, min(total, (i + 1) * size)) for i in range(count)]
    if shares > max(1, total):
        raise InputError(f"shares is {shares}, but there are {total} items: set it to 0.")
    if shares:
        ends = [total * (i + 1) // shares for i in range(shares)]
    else:
        ends = _tapering_ends(total, devices)
    return list(zip([0, *ends], ends, strict=False))


def _tapering_ends(total: int, devices: int) -> list[int]:
    """Where slices end that become smaller towards the end; one device gets all in one."""
    ends = [0] if devices > 1 else [total]
    while ends[-1] < total:
        part = -(-(total - ends[-1]) // (PARTS_PER_DEVICE * devices))
        ends.append(ends[-1] + min(MAX_CHOSEN_SIZE, part))
    return ends[1:] or ends


def slices_nodes(split_id: str, digests: Sequence[Sequence[str]]) -> dict[Link, Mapping[str, Any]]:
    """Return what stands for a split's outputs: of each share, the digests of its three values."""
    return {
        (split_id, slot): {
            "class_type": SLICES_CLASS,
            "inputs": {"digests": "\n".join(share[slot] for share in digests), "slot": slot},
        }
        for slot in range(NUM_SPLIT_OUTPUTS)
    }


def part_of_slices(prompt: Prompt, first: int, last: int) -> dict[str, Any]:
    """Return the prompt in which a share sees the items from first to before last of its slices."""
    parts = {
        (node_id, 0): {
            "class_type": PART_CLASS,
            "inputs": {
                "value": [node_id, 0],
                "slot": node["inputs"]["slot"],
                "first": first,
                "last": last,
            },
        }
        for node_id, node in prompt.items()
        if node["class_type"] == SLICES_CLASS
    }
    return stand_in(prompt, parts, "part")
