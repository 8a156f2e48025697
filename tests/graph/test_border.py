from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.graph import (
    Link,
    as_link,
    border,
    in_order,
    is_worth_shipping,
    links_of,
    shipped_node,
    stand_in,
    upstream,
    varying_nodes,
)
from tests.graph.prompts import Graph, node, prompts


def evaluate(prompt: Graph, shipped: Mapping[str, Any]) -> dict[str, str]:
    """What each node gives, as a text that any change of what it depends on changes."""
    found: dict[str, str] = {}
    for node_id in in_order(prompt):
        if prompt[node_id]["class_type"] == "FleetShipped":
            found[node_id] = shipped[prompt[node_id]["inputs"]["digest"]]
            continue
        inputs = {name: _given(found, value) for name, value in prompt[node_id]["inputs"].items()}
        found[node_id] = json.dumps([prompt[node_id]["class_type"], inputs], sort_keys=True)
    return found


def _given(found: Mapping[str, str], value: Any) -> Any:
    link = as_link(value)
    return value if link is None else value_of(found, link)


def value_of(found: Mapping[str, str], link: Link) -> Any:
    """A shipped node has one output, which is the value itself."""
    text = found.get(link[0], "nowhere")
    return text if text.startswith("value ") else f"value {link[1]} of {text}"


@given(prompts(), st.data())
def test_a_piece_with_shipped_values_gives_what_the_whole_gives(
    prompt: Graph, data: st.DataObject
) -> None:
    target = data.draw(st.sampled_from(list(prompt)))
    staying = data.draw(st.sets(st.sampled_from(list(prompt))))
    piece = upstream(prompt, [target])
    moving = varying_nodes(piece) | {target}
    links = border(piece, moving, lambda link: link[0] not in staying)
    whole = evaluate(prompt, {})
    values = {f"digest of {link}": value_of(whole, link) for link in links}
    standing = {link: shipped_node(f"digest of {link}") for link in links}
    part = upstream(stand_in(piece, standing), [target])
    assert evaluate(part, values)[target] == whole[target]
    # What is computed there is what moves, what cannot travel, and nothing else.
    computed = {each for each in part if part[each]["class_type"] != "FleetShipped"}
    assert computed <= moving | staying
    assert not {link[0] for link in links} & computed


def test_a_node_that_is_needed_anyway_ships_nothing() -> None:
    prompt = {
        "load": node("Loader", name="a.safetensors"),
        "sample": node("Sampler", model=["load", 0], latent=["load", 1]),
    }
    assert border(prompt, {"sample"}, lambda link: link[1] == 1) == []


def test_what_a_node_that_moves_along_needs_is_shipped() -> None:
    prompt = {
        "image": node("LoadImage", image="a.png"),
        "patch": node("Patch", image=["image", 0]),
        "sample": node("Sampler", model=["patch", 0]),
    }
    assert border(prompt, {"sample"}, lambda link: link[0] == "image") == [("image", 0)]


@pytest.mark.parametrize(
    ("made", "type_name", "worth"),
    [
        (node("CLIPTextEncode", text="a", clip=["1", 1]), "CONDITIONING", True),
        (node("LoadImage", image="a.png"), "IMAGE", True),
        (node("LoadImage", image="a.png"), "IMAGE,MASK", True),
        (node("EmptyLatentImage", width=512, height=512, batch_size=1), "LATENT", False),
        (node("PrimitiveString", value="a"), "STRING", False),
        (node("StringConcatenate", a=["1", 0]), "STRING", True),
        (node("CheckpointLoaderSimple", ckpt_name="a.safetensors"), "MODEL", False),
        (node("Switch", a=["1", 0]), "*", False),
        (node("Old", a=["1", 0]), ["euler", "dpm"], False),
        (node("Old", a=["1", 0]), None, False),
    ],
)
def test_what_is_worth_shipping(made: Any, type_name: Any, worth: bool) -> None:
    assert is_worth_shipping(made, type_name) is worth


def test_links_of_a_stand_in_are_those_that_it_stands_for() -> None:
    prompt = {"1": node("A"), "2": node("B", x=["1", 0], y=["1", 1])}
    changed = stand_in(prompt, {("1", 0): shipped_node("d")})
    assert links_of(changed["2"]) == {"x": ("shipped.1.0", 0), "y": ("1", 1)}
    assert prompt["2"]["inputs"]["x"] == ["1", 0]
