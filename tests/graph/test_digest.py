from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from comfyfleet.errors import WorkflowError
from comfyfleet.graph import as_link, digest, model_key, node_digests, set_input, vary_seeds
from tests.graph.prompts import NAMES, Graph, all_prompts, load, node, prompts


def renamed(prompt: Graph, order: list[str]) -> Graph:
    """Return the prompt with nodes in another order, other ids, and inputs turned round."""
    new_ids = {node_id: f"n{number}" for number, node_id in enumerate(order)}

    def moved(value: Any) -> Any:
        link = as_link(value)
        return [new_ids[link[0]], link[1]] if link else value

    return {
        new_ids[node_id]: {
            "_meta": {"title": node_id},
            "inputs": {k: moved(v) for k, v in reversed(prompt[node_id]["inputs"].items())},
            "class_type": prompt[node_id]["class_type"],
        }
        for node_id in order
    }


@given(prompts(), st.data())
def test_names_and_order_do_not_count(prompt: Graph, data: st.DataObject) -> None:
    order = data.draw(st.permutations(list(prompt)))
    other = renamed(prompt, order)
    assert digest(other) == digest(prompt)
    ours, theirs = node_digests(prompt), node_digests(other)
    assert [theirs[f"n{number}"] for number in range(len(order))] == [ours[i] for i in order]


@given(prompts(), st.data())
def test_every_input_counts(prompt: Graph, data: st.DataObject) -> None:
    node_id = data.draw(st.sampled_from(list(prompt)))
    inputs = prompt[node_id]["inputs"]
    assume(inputs)
    name = data.draw(st.sampled_from(list(inputs)))
    link = as_link(inputs[name])
    changed = [link[0], link[1] + 1] if link else [inputs[name], "changed"]
    other = {**prompt, node_id: {**prompt[node_id], "inputs": {**inputs, name: changed}}}
    assert digest(other) != digest(prompt)
    assert node_digests(other)[node_id] != node_digests(prompt)[node_id]


@given(prompts(), st.data())
def test_the_class_counts(prompt: Graph, data: st.DataObject) -> None:
    node_id = data.draw(st.sampled_from(list(prompt)))
    other = {**prompt, node_id: {**prompt[node_id], "class_type": "Other"}}
    assert digest(other) != digest(prompt)


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0, None), ("1", 1)])
def test_types_count(one: object, other: object) -> None:
    assert digest({"1": node("A", x=one)}) != digest({"1": node("A", x=other)})


def test_a_literal_is_never_taken_for_a_link() -> None:
    source = node("A")
    linked = {"1": source, "2": node("B", x=["1", 0])}
    for literal in ({"__value__": ["1", 0]}, [node_digests({"1": source})["1"], 0, 0]):
        assert digest({"1": source, "2": node("B", x=literal)}) != digest(linked)


def test_a_change_moves_only_what_depends_on_it() -> None:
    prompt = load("sdxl_base_refiner")
    before, after = node_digests(prompt), node_digests(set_input(prompt, "15.text=a pier"))
    assert {i for i in prompt if before[i] != after[i]} == {"15", "11", "17", "19"}


def test_links_to_nowhere_are_told_apart() -> None:
    assert digest({"1": node("A", x=["8", 0])}) != digest({"1": node("A", x=["9", 0])})


def test_lone_surrogates_have_a_digest() -> None:
    assert digest({"1": node("A", text="\ud800")})


def test_digest_of_a_cycle_is_refused() -> None:
    with pytest.raises(WorkflowError, match="cycle"):
        digest({"1": node("A", x=["1", 0])})


@pytest.mark.parametrize("name", NAMES)
def test_seeds_do_not_change_the_model_key(name: str) -> None:
    prompt = load(name)
    assert model_key(prompt) == model_key(vary_seeds(prompt, 7, base=0)) != ""


@pytest.mark.parametrize("change", ["6.text=another", "63.width=640", "57.steps=4", "55.shift=5"])
def test_texts_and_sizes_do_not_change_the_model_key(change: str) -> None:
    prompt = load("wan22_i2v")
    assert model_key(set_input(prompt, change)) == model_key(prompt)


@pytest.mark.parametrize(
    "change", ["37.unet_name=other.safetensors", "39.vae_name=x.pt", "38.clip_name=c.gguf"]
)
def test_other_weights_change_the_model_key(change: str) -> None:
    prompt = load("wan22_i2v")
    assert model_key(set_input(prompt, change)) != model_key(prompt)


def test_a_lora_changes_the_model_key_and_its_strength_does_not() -> None:
    prompt = load("flux_lora_controlnet")
    assert model_key(set_input(prompt, "4.lora_name=b.safetensors")) != model_key(prompt)
    assert model_key(set_input(prompt, "4.strength_model=0.5")) == model_key(prompt)


def test_the_workflows_load_different_models() -> None:
    keys = {name: model_key(prompt) for name, prompt in all_prompts().items()}
    assert len(set(keys.values())) == len(keys)


def test_no_model_no_key() -> None:
    assert model_key({"1": node("LoadImage", image="a.png")}) == ""
    assert model_key({"1": node("CLIPTextEncode", text="a.safetensors", clip=["2", 0])}) == ""


@pytest.mark.parametrize(
    "loader",
    [
        node("AnyPacksModelNode", path="deep/model.sft"),
        node("Power Lora Loader (rgthree)", model=["2", 0], lora_1={"on": True, "lora": "a.pt"}),
        node("DiffusersLoader", model_path="sdxl-turbo"),
        node("FleetDemoModel"),
    ],
)
def test_loaders_of_other_packs_are_recognised(loader: dict[str, Any]) -> None:
    assert model_key({"1": loader})


def test_loaders_with_texts_keep_their_key() -> None:
    one, other = (
        {"1": node("Efficient Loader", ckpt_name=name, positive=text, empty_latent_width=width)}
        for name, text, width in (("a\\b.ckpt", "a fox", 512), ("a/b.ckpt", "a hen", 640))
    )
    assert model_key(one) == model_key(other)


def test_a_caller_can_say_what_loads() -> None:
    prompt = {"1": node("Reader", which="a"), "2": node("CheckpointLoaderSimple", ckpt_name="b.pt")}
    key = model_key(prompt, lambda class_type, inputs: class_type == "Reader" and "which" in inputs)
    assert key == model_key({"9": node("Reader", which="a")}, lambda class_type, inputs: True)
