from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyfleet.errors import InputError, WorkflowError
from comfyfleet.graph import (
    as_link,
    clone_share,
    digest,
    find_seeds,
    links_of,
    node_digests,
    set_input,
    upstream,
    vary,
    vary_seeds,
    varying_nodes,
)
from tests.graph.prompts import NAMES, Graph, large_prompt, load, node, prompts

SHARES = st.integers(0, 5)


@pytest.mark.parametrize("class_type", ["FleetSeed", "DistributedSeed"])
def test_a_seed_counts_up_and_wraps(class_type: str) -> None:
    prompt = {"1": node(class_type, seed=2**64 - 2)}
    seeds = [vary(prompt, share)["1"]["inputs"]["seed"] for share in range(4)]
    assert seeds == [2**64 - 2, 2**64 - 1, 0, 1]


def test_a_linked_seed_gets_its_offset_at_run_time() -> None:
    prompt = {"1": node("PrimitiveInt", value=5), "2": node("FleetSeed", seed=["1", 0])}
    assert vary(prompt, 0) == prompt
    assert vary(prompt, 3)["2"] == node("FleetSeedOffset", seed=["1", 0], offset=3)


def test_a_seed_as_text_is_read_as_comfyui_reads_it() -> None:
    assert vary({"1": node("FleetSeed", seed="41")}, 1) == {"1": node("FleetSeed", seed=42)}


def test_value_lines_cycle() -> None:
    prompt = {"1": node("FleetValue", values="red\n\n green \r\nblue\n", type="STRING")}
    values = [vary(prompt, share)["1"]["inputs"]["values"] for share in range(5)]
    assert values == ["red", "green", "blue", "red", "green"]


def test_a_value_set_as_a_number_is_a_line() -> None:
    prompt = set_input({"1": node("FleetValue", values="", type="INT")}, "1.values=7")
    assert vary(prompt, 2)["1"]["inputs"]["values"] == "7"


def test_distributed_value_reads_its_share() -> None:
    prompt = load("peer_distributed")
    values = [vary(prompt, share)["10"]["inputs"]["default_value"] for share in range(5)]
    assert values == ["6", "4.5", "6", "8", "6"]


def test_share_0_keeps_the_default_value() -> None:
    prompt = {"1": node("DistributedValue", default_value="d", worker_values='{"0": "x"}')}
    assert vary(prompt, 0) == prompt


@pytest.mark.parametrize(
    ("worker_values", "expected"), [("", "d"), ('{"1": 3}', "3"), ({"1": "x"}, "x")]
)
def test_distributed_value_is_lenient_in_form(worker_values: Any, expected: str) -> None:
    prompt = {"1": node("DistributedValue", default_value="d", worker_values=worker_values)}
    assert vary(prompt, 1)["1"]["inputs"]["default_value"] == expected


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (node("FleetValue", values=" \n ", type="INT"), "input 'values' is empty; write one"),
        (node("FleetValue", values=["2", 0], type="INT"), "input 'values' is linked"),
        (node("FleetValue", type="INT"), "input 'values' is missing"),
        (node("DistributedValue", default_value="", worker_values="{"), "is not JSON"),
        (node("DistributedValue", default_value="", worker_values="[]"), "not an object; write"),
        (node("FleetSeed", seed="abc"), "input 'seed' is \"abc\"; write a whole number"),
        (node("FleetSeed", seed=float("inf")), "write a whole number"),
        (node("DistributedSeed"), "input 'seed' is null"),
    ],
)
def test_what_cannot_vary_is_named(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        vary({"1": bad, "2": node("A")}, 1)
    (problem,) = caught.value.problems
    assert words in problem.message
    assert (problem.node_id, problem.class_type) == ("1", bad["class_type"])


def test_all_nodes_that_cannot_vary_are_named() -> None:
    with pytest.raises(WorkflowError) as caught:
        vary({"1": node("FleetSeed"), "2": node("FleetValue", values="")}, 1)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", NAMES)
def test_share_0_of_a_real_workflow_is_as_written(name: str) -> None:
    assert vary(load(name), 0) == load(name)


@given(prompts(), SHARES)
def test_only_varying_nodes_change_and_share_0_keeps_seeds(prompt: Graph, share: int) -> None:
    varied = vary(prompt, share)
    assert list(varied) == list(prompt)
    for node_id, item in prompt.items():
        if "Fleet" not in item["class_type"] and "Distributed" not in item["class_type"]:
            assert varied[node_id] is item
        if share == 0 and item["class_type"] != "FleetValue":
            assert varied[node_id] is item


@given(prompts(), SHARES)
def test_what_does_not_vary_is_the_same_for_all_shares(prompt: Graph, share: int) -> None:
    before, after = node_digests(prompt), node_digests(vary(prompt, share))
    assert {node_id for node_id in prompt if before[node_id] != after[node_id]} <= varying_nodes(
        prompt
    )


def test_varying_nodes_of_the_peers_workflow() -> None:
    prompt = load("peer_distributed")
    assert varying_nodes(prompt) == {"4", "10", "8", "1", "2", "3"}
    assert varying_nodes(prompt, ["1"]) == {"4", "10", "8", "1"}
    assert varying_nodes(prompt, ["5"]) == set()
    assert varying_nodes(load("wan22_i2v")) == set()


@given(prompts(), SHARES, st.data())
def test_clones_and_originals_compute_what_vary_does(
    prompt: Graph, share: int, data: st.DataObject
) -> None:
    link = (data.draw(st.sampled_from(list(prompt))), 1)
    clones, (source, slot) = clone_share(prompt, link, share, "clone/")
    varied = vary(prompt, share)
    assert slot == 1
    assert not clones.keys() & prompt.keys()
    assert node_digests({**prompt, **clones})[source] == node_digests(varied)[link[0]]
    assert len(clones) == len(varying_nodes(prompt, [link[0]]))


def test_clones_use_what_does_not_vary_as_it_is() -> None:
    prompt = load("peer_distributed")
    clones, link = clone_share(prompt, ("1", 0), 1, "5.0.0.")
    assert link == ("5.0.0.1", 0)
    assert set(clones) == {"5.0.0.1", "5.0.0.4", "5.0.0.8", "5.0.0.10"}
    assert links_of(clones["5.0.0.8"]) == {
        "model": ("7", 0),
        "seed": ("5.0.0.4", 0),
        "cfg": ("5.0.0.10", 0),
        "positive": ("5", 0),
        "negative": ("6", 0),
        "latent_image": ("9", 0),
    }


def test_nothing_is_cloned_where_nothing_varies() -> None:
    assert clone_share(load("upscale"), ("10", 0), 2, "x.") == ({}, ("10", 0))


def test_the_large_prompt_is_cloned_without_its_loader() -> None:
    prompt = large_prompt()
    clones, (source, _) = clone_share(prompt, ("3:scale", 0), 1, "x.")
    assert set(clones) == {"x.seed", "x.3:sample", "x.3:decode", "x.3:scale"}
    assert source == "x.3:scale"


def test_seed_nodes_decide_alone() -> None:
    assert find_seeds(load("peer_distributed")) == [("4", "seed")]
    assert find_seeds(large_prompt()) == [("seed", "seed")]


def test_without_seed_nodes_every_literal_seed_counts() -> None:
    assert find_seeds(load("sdxl_base_refiner")) == [("10", "noise_seed"), ("11", "noise_seed")]
    assert find_seeds(load("img2img_mask")) == [("9", "seed")]
    assert find_seeds({"1": node("A", seed=True), "2": node("A", seed=["1", 0])}) == []


def test_vary_seeds_offsets_or_sets() -> None:
    prompt = load("sdxl_base_refiner")
    moved, based = vary_seeds(prompt, 3), vary_seeds(prompt, 3, base=2**64 - 1)
    assert [moved[i]["inputs"]["noise_seed"] for i in ("10", "11")] == [721897303308199, 3]
    assert [based[i]["inputs"]["noise_seed"] for i in ("10", "11")] == [2, 2]


def test_vary_seeds_of_a_linked_seed_node() -> None:
    prompt = {"1": node("PrimitiveInt", value=5), "2": node("FleetSeed", seed=["1", 0])}
    assert vary_seeds(prompt, 2)["2"] == node("FleetSeedOffset", seed=["1", 0], offset=2)
    assert vary_seeds(prompt, 2, base=9)["2"] == node("FleetSeed", seed=11)


def test_vary_seeds_names_a_bad_seed() -> None:
    with pytest.raises(WorkflowError, match=r"node 1 \(FleetSeed\): input 'seed' is null"):
        vary_seeds({"1": node("FleetSeed")}, 1)


@given(prompts())
def test_offset_0_keeps_what_is_computed(prompt: Graph) -> None:
    literal = {i: n for i, n in prompt.items() if not as_link(n["inputs"].get("seed"))}
    assert digest(vary_seeds(literal, 0)) == digest(literal)


@pytest.mark.parametrize(
    ("assignment", "node_id", "name", "value"),
    [
        ("9.seed=42", "9", "seed", 42),
        ("9.denoise=0.5", "9", "denoise", 0.5),
        ("7.text=a fox, x=3", "7", "text", "a fox, x=3"),
        ('7.text="3"', "7", "text", "3"),
        ("8.text=", "8", "text", ""),
        ("8.text=" + "9" * 5000, "8", "text", "9" * 5000),
        ("8.text=NaN", "8", "text", "NaN"),
        ("8.text=Infinity", "8", "text", "Infinity"),
        ("4.tapered_corners=false", "4", "tapered_corners", False),
        (" 9.seed=1", "9", "seed", 1),
        ("9.latent_image=7", "9", "latent_image", 7),
        ('9.model=["1", 0]', "9", "model", ["1", 0]),
    ],
)
def test_set_input(assignment: str, node_id: str, name: str, value: object) -> None:
    prompt = load("img2img_mask")
    changed = set_input(prompt, assignment)
    prompt[node_id]["inputs"][name] = value
    assert changed == prompt


def test_dots_in_ids_and_names() -> None:
    prompt = {"5": node("A", **{"size.width": 1}), "5.0": node("A", width=1)}
    assert set_input(prompt, "5.size.width=2")["5"]["inputs"] == {"size.width": 2}
    assert set_input(prompt, "5.0.width=2")["5.0"]["inputs"] == {"width": 2}


def test_an_input_that_only_another_node_of_the_class_has() -> None:
    prompt = {"1": node("WanImageToVideo"), "2": node("WanImageToVideo", start_image=["1", 0])}
    assert set_input(prompt, '1.start_image="x"')["1"]["inputs"] == {"start_image": "x"}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("9.seed", "write NODE.INPUT=VALUE"),
        ("seed=4", "write NODE.INPUT=VALUE"),
        ("=4", "write NODE.INPUT=VALUE"),
        ("99.seed=4", r"no node of the workflow fits '99.seed'; choose among 1 \(CheckpointLo"),
        ("9.sed=4", r"node 9 \(KSampler\) has no input 'sed'; its inputs are: cfg, denoise, "),
        ("9.=4", r"node 9 \(KSampler\) has no input ''"),
        ('9.model=["77", 0]', "links to node 77, which is not in the workflow"),
        ('5.pixels=["10", 0]', "part of a cycle"),
    ],
)
def test_a_bad_assignment_is_explained(assignment: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        set_input(load("img2img_mask"), assignment)


def test_varied_prompts_are_still_json() -> None:
    prompt = load("peer_distributed")
    assert json.loads(json.dumps(vary(prompt, 2))) == vary(prompt, 2)
    assert upstream(vary(prompt, 2), ["3"])
