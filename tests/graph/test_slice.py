from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import WorkflowError
from comfyfleet.graph import cut, downstream, links_of, new_id, upstream
from tests.graph.prompts import Graph, large_prompt, load, node, prompts


@given(prompts(), st.data())
def test_upstream_is_closed_and_minimal(prompt: Graph, data: st.DataObject) -> None:
    targets = data.draw(st.lists(st.sampled_from(list(prompt)), min_size=1))
    piece = upstream(prompt, targets)
    assert set(targets) <= set(piece)
    for node_id, item in piece.items():
        assert item is prompt[node_id]
        assert {source for source, _ in links_of(item).values()} <= set(piece)
        assert downstream(prompt, [node_id]) & set(targets)


def test_upstream_of_the_model_link_is_loader_and_patches() -> None:
    assert list(upstream(load("flux_lora_controlnet"), ["5"])) == ["1", "4", "5"]


def test_upstream_needs_no_recursion() -> None:
    depth = 20_000
    chain = {str(i): node("A", x=[str(i - 1), 0]) for i in range(1, depth)} | {"0": node("A")}
    assert len(upstream(chain, [str(depth - 1)])) == depth


def test_upstream_of_a_part_of_the_large_prompt() -> None:
    piece = upstream(large_prompt(), ["7:scale"])
    own = {f"7:{name}" for name in ("text", "latent", "sample", "decode", "scale")}
    assert set(piece) == own | {"ckpt", "seed", "negative"}


def test_upstream_leaves_links_to_nowhere() -> None:
    prompt = {"1": node("A", x=["gone", 0])}
    assert upstream(prompt, ["1"]) == prompt


def test_upstream_refuses_unknown_targets() -> None:
    with pytest.raises(WorkflowError) as caught:
        upstream({"1": node("A")}, ["1", "8", "9"])
    assert [problem.node_id for problem in caught.value.problems] == ["8", "9"]
    assert "choose among 1" in str(caught.value)


def test_cut_ends_in_the_sink() -> None:
    prompt = load("peer_distributed")
    sink = node("FleetReturn", value=["1", 0], name="images")
    sink_id = new_id(prompt, "return")
    piece = cut(prompt, sink, sink_id)
    assert piece[sink_id] is sink
    assert set(piece) - {sink_id} == {"1", "4", "5", "6", "7", "8", "9", "10"}


def test_cut_follows_every_link_of_the_sink() -> None:
    prompt = load("wan22_i2v")
    piece = cut(prompt, node("FleetReturn", a=["62", 0], b=["39", 0]), "return")
    assert set(piece) == {"62", "39", "return"}


def test_cut_refuses_an_id_that_is_taken() -> None:
    with pytest.raises(ValueError, match="sink_id '3' is a node of the prompt"):
        cut({"3": node("A")}, node("FleetReturn"), "3")


def test_new_id_is_new() -> None:
    assert new_id({}, "return") == "return"
    assert new_id({"return": node("A")}, "return") == "return_2"
    assert new_id({"return": node("A"), "return_2": node("A")}, "return") == "return_3"
