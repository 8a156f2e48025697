from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.graph import (
    Link,
    downstream,
    exclusive,
    find_branches,
    upstream,
    with_branches,
)
from comfyfleet.graph.branches import _gates
from tests.graph.prompts import Graph, large_prompt, load, node, prompts


def is_output(class_type: str) -> bool:
    return class_type in ("SaveImage", "B")


def is_heavy(class_type: str) -> bool:
    return class_type in ("KSampler", "A")


def found(prompt: Graph) -> list[Link]:
    return find_branches(prompt, is_output, is_heavy, lambda link: True)


def sampled(*names: str, source: str = "latent") -> Graph:
    graph: Graph = {"load": node("Loader", name="m.safetensors"), "latent": node("Empty")}
    for name in names:
        graph[f"sample {name}"] = node("KSampler", model=["load", 0], latent=[source, 0])
        graph[f"decode {name}"] = node("Decode", samples=[f"sample {name}", 0], vae=["load", 2])
    return graph


def saved(graph: Graph, *names: str) -> Graph:
    return graph | {f"save {name}": node("SaveImage", images=[name, 0]) for name in names}


def test_branches_that_end_in_outputs() -> None:
    prompt = saved(sampled("a", "b"), "decode a", "decode b")
    assert found(prompt) == [("decode a", 0), ("decode b", 0)]


def test_branches_that_end_where_they_join() -> None:
    prompt = sampled("a", "b")
    prompt["join"] = node("ImageBatch", image1=["decode a", 0], image2=["decode b", 0])
    assert found(saved(prompt, "join")) == [("decode a", 0), ("decode b", 0)]


def test_what_others_wait_for_is_no_branch() -> None:
    """A first sampler whose picture is saved and refined in two ways."""
    prompt = saved(sampled("base"), "decode base")
    prompt |= sampled("a", "b", source="sample base")
    assert found(saved(prompt, "decode a", "decode b")) == [("decode a", 0), ("decode b", 0)]


def test_one_after_the_other_is_one_branch() -> None:
    prompt = sampled("a") | sampled("b", source="sample a")
    del prompt["decode a"]
    assert found(saved(prompt, "decode b")) == [("decode b", 0)]


@pytest.mark.parametrize("class_type", ["FleetCollector", "FleetBranch", "FleetParallelModel"])
def test_who_places_such_nodes_decides(class_type: str) -> None:
    prompt = saved(sampled("a", "b"), "decode a", "decode b")
    assert found({**prompt, "own": node(class_type)}) == []


def test_a_real_workflow_of_one_sampler_is_left_alone() -> None:
    assert len(found(load("flux_lora_controlnet"))) <= 1


@given(prompts(), st.data())
def test_what_is_exclusive_reaches_an_end_through_the_node_only(
    prompt: Graph, data: st.DataObject
) -> None:
    target = data.draw(st.sampled_from(list(prompt)))
    own = exclusive(prompt, target, is_output)
    assert own <= set(upstream(prompt, [target]))
    without = {each: item for each, item in prompt.items() if each != target}
    for each in own - {target}:
        ends = [end for end in downstream(without, [each]) if is_output(prompt[end]["class_type"])]
        assert not ends


@given(prompts())
def test_branches_are_apart_and_independent(prompt: Graph) -> None:
    links = found(prompt)
    own = {link: exclusive(prompt, link[0], is_output) for link in links}
    for link in links:
        for other in links:
            if other != link:
                assert not own[link] & own[other]
                assert link[0] not in upstream(prompt, [other[0]])


@given(prompts())
def test_a_marked_prompt_differs_in_the_branches_alone(prompt: Graph) -> None:
    links = found(prompt)
    marked: dict[str, Any] = with_branches(prompt, links)
    branches = {each for each in marked if each not in prompt}
    assert len(branches) == len(links)
    for node_id, item in prompt.items():
        changed = marked[node_id]["inputs"]
        for name, value in item["inputs"].items():
            if changed[name] != value:
                assert marked[changed[name][0]]["inputs"]["value"] == value


@given(prompts())
def test_gates_say_what_is_exclusive(prompt: Graph) -> None:
    gates = _gates(prompt, is_output)
    for target in prompt:
        own = {each for each in prompt if target in _way_out(gates, each)}
        assert own == exclusive(prompt, target, is_output)


def _way_out(gates: dict[str, str], node_id: str) -> list[str]:
    way = [node_id]
    while way[-1] in gates:
        way.append(gates[way[-1]])
    return way


def test_a_thousand_nodes_are_looked_at_while_a_client_waits() -> None:
    links = found(large_prompt(200))
    assert len(links) == 200
