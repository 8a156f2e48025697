"""The units of a collection: one for each share, or for some items of a share's slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfyfleet.extension.shares.shipping import Cargo, with_return, with_shipped
from comfyfleet.fleet import new_run_id
from comfyfleet.graph import Link, find_splits, links_of, model_key, part_of_slices, vary
from comfyfleet.work import Unit

Prompt = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some items of a share's slice."""

    share: int
    first: int
    last: int


class Pieces:
    """Makes the units, and knows by their index what they are of.

    A unit's index is its share's number. Where no worker has the memory for a slice its halves
    have numbers of their own, behind all shares: ``halve`` is for the fleet.
    """

    def __init__(
        self, prompt: Prompt, links: Mapping[str, Link], cargo: Cargo, workers: int, here: bool
    ) -> None:
        """``here``: does the master compute besides its workers?"""
        whole, sink_id = with_return(_with_shares(prompt, workers, here), links)
        self._prompt = with_shipped(whole, cargo.shared, sink_id)
        self._cargo = cargo
        self._run_id = new_run_id()
        self._model_key = model_key(self._prompt)
        self._halves: dict[int, Piece] = {}

    @property
    def num_halved(self) -> int:
        """How many units were replaced by two others."""
        return len(self._halves) // 2

    def find_half(self, index: int) -> Piece | None:
        """What the unit of this index is of; None if it is a whole share."""
        return self._halves.get(index)

    def place_of(self, index: int) -> tuple[int, int]:
        """Sorts units as their results belong."""
        half = self._halves.get(index)
        return (index, 0) if half is None else (half.share, half.first)

    def unit_of(self, share: int, items: int) -> Unit:
        """A whole share; ``items``: how many it has, if it can be cut between them, else 1."""
        cost = self._cargo.cost_of(share)
        return self._unit(self._prompt, share, index=share, items=items, cost=cost)

    def halve(self, unit: Unit, index: int) -> tuple[Unit, Unit]:
        """Two units for one, with this index and the next."""
        whole = self._halves.get(unit.index) or Piece(unit.index, 0, unit.items)
        middle = whole.first + unit.items // 2
        low = self._half(unit, index, Piece(whole.share, whole.first, middle))
        return low, self._half(unit, index + 1, Piece(whole.share, middle, whole.last))

    def _half(self, unit: Unit, index: int, piece: Piece) -> Unit:
        self._halves[index] = piece
        prompt = part_of_slices(self._prompt, piece.first, piece.last)
        items = piece.last - piece.first
        cost = unit.cost * items / unit.items
        return self._unit(prompt, piece.share, index=index, items=items, cost=cost)

    def _unit(self, prompt: Prompt, share: int, *, index: int, items: int, cost: float) -> Unit:
        return Unit(
            run_id=self._run_id,
            index=index,
            prompt=vary(prompt, share),
            model_key=self._model_key,
            cost=cost,
            items=items,
            values=self._cargo.of_share(share),
        )


def _with_shares(prompt: Prompt, workers: int, here: bool) -> dict[str, Any]:
    """The prompt with "one share per device" as a number: a worker must count as we do here."""
    return {node_id: _counted(prompt, node, workers, here) for node_id, node in prompt.items()}


def _counted(
    prompt: Prompt, node: Mapping[str, Any], workers: int, here: bool
) -> Mapping[str, Any]:
    inputs = node["inputs"]
    if node["class_type"] == "FleetCollector" and inputs.get("shares") == 0:
        if find_splits(prompt, [source for source, _ in links_of(node).values()]):
            return node
        shares = workers + (here and not inputs.get("delegate"))
        return {**node, "inputs": {**inputs, "shares": shares}}
    if node["class_type"] == "DistributedCollector":
        links = {name: inputs[name] for name in ("images", "audio") if name in inputs}
        shares = 1 if inputs.get("load_balance") else workers + here
        collect = {**links, "shares": shares, "delegate": False}
        return {"class_type": "FleetCollector", "inputs": collect}
    return node
