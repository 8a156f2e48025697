from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from comfyfleet.errors import Problem, WorkflowError
from comfyfleet.graph import as_link, downstream, in_order, links_of, parse_prompt
from tests.graph.prompts import NAMES, Graph, all_prompts, load, load_text, node, prompts


def problems_of(data: Any) -> tuple[Problem, ...]:
    text = data if isinstance(data, str) else json.dumps(data)
    with pytest.raises(WorkflowError) as caught:
        parse_prompt(text, "job.json")
    return caught.value.problems


@pytest.mark.parametrize("name", NAMES)
def test_real_workflows_are_read_as_they_are(name: str) -> None:
    assert parse_prompt(load_text(name), name) == load(name)


def test_the_body_of_a_post_to_prompt_is_accepted() -> None:
    body = {"prompt": load("upscale"), "client_id": "me", "extra_data": {}}
    assert parse_prompt(json.dumps(body), "body") == load("upscale")


def test_a_node_may_be_called_prompt() -> None:
    graph = {"prompt": node("PrimitiveString", value="a fox")}
    assert parse_prompt(json.dumps(graph), "job.json") == graph


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_prompt("\ufeff" + load_text("upscale"), "job.json") == load("upscale")


def test_broken_json_is_located() -> None:
    (problem,) = problems_of('{\n  "3": }')
    assert str(problem).startswith("job.json is not JSON: Expecting value at line 2, column 8.")
    assert "File > Export (API)" in problem.message


def test_the_editors_format_is_recognised() -> None:
    (problem,) = problems_of({"nodes": [{"id": 3, "type": "KSampler"}], "links": [], "version": 1})
    assert "format of the editor" in problem.message
    assert "File > Export (API)" in problem.message
    assert "Workflow > Export (API)" in problem.message
    assert "dev mode" in problem.message


@pytest.mark.parametrize(
    ("data", "kind"),
    [([], "list"), ("3", "number"), ('"text"', "string"), ("null", "null"), ("true", "boolean")],
)
def test_other_json_is_refused(data: Any, kind: str) -> None:
    (problem,) = problems_of(data)
    assert f"job.json holds a JSON {kind}" in problem.message


@pytest.mark.parametrize("data", [{}, {"prompt": {}}])
def test_an_empty_workflow_is_refused(data: Any) -> None:
    (problem,) = problems_of(data)
    assert "empty" in problem.message


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (5, "is a number, not an object"),
        ({"inputs": {}}, "class_type is null"),
        ({"class_type": "", "inputs": {}}, 'class_type is ""'),
        ({"class_type": "KSampler"}, "has no inputs"),
        ({"class_type": "KSampler", "inputs": []}, "inputs is a list"),
        (node("KSampler", model=["9", 0]), "input 'model' links to node 9, which is not in"),
        (node("KSampler", model=["1", -1]), "input 'model' links to output -1 of node 1"),
        (node("KSampler", model=["3", 0]), "part of a cycle (3 -> 3)"),
    ],
)
def test_a_bad_node_is_named(bad: Any, words: str) -> None:
    (problem,) = problems_of({"1": node("CheckpointLoaderSimple"), "3": bad})
    assert words in problem.message
    assert problem.node_id == "3"
    class_type = bad.get("class_type") if isinstance(bad, dict) else None
    assert problem.class_type == class_type


def test_all_problems_are_listed() -> None:
    graph = load("sdxl_base_refiner")
    del graph["5"]
    graph["7"].pop("class_type")
    graph["10"]["inputs"]["model"] = ["4", -2]
    graph["6"]["inputs"]["clip"] = ["11", 0]
    problems = problems_of(graph)
    assert [problem.node_id for problem in problems] == ["7", "10", "10", "10"]
    assert "cycle (10 -> 11 -> 6 -> 10)" in problems[-1].message


def test_every_separate_cycle_is_a_problem() -> None:
    graph = {
        "1": node("A", x=["2", 0]),
        "2": node("A", x=["1", 0]),
        "3": node("A", x=["1", 0]),
        "4": node("B", x=["4", 0], y=["3", 0]),
    }
    assert [problem.message.split("(")[1].split(")")[0] for problem in problems_of(graph)] == [
        "1 -> 2 -> 1",
        "4 -> 4",
    ]


@pytest.mark.parametrize(
    ("value", "link"),
    [
        (["4", 0], ("4", 0)),
        (["4", 1.0], ("4", 1)),
        (["4", -1], ("4", -1)),
        (["4", 1.5], None),
        (["4", float("nan")], None),
        (["4", float("inf")], None),
        (["4", "0"], None),
        ([4, 0], None),
        (("4", 0), None),
        (["4"], None),
        (["4", 0, 0], None),
        ({"__value__": ["4", 0]}, None),
        ("4", None),
        (None, None),
    ],
)
def test_as_link(value: object, link: object) -> None:
    assert as_link(value) == link


def test_links_of_leaves_literals_out() -> None:
    decode = load("sdxl_base_refiner")["17"]
    assert links_of(decode) == {"samples": ("11", 0), "vae": ("12", 2)}
    assert links_of({"class_type": "A"}) == {}


def test_downstream_of_the_refiner_prompt() -> None:
    assert downstream(load("sdxl_base_refiner"), ["15"]) == {"15", "11", "17", "19"}


def test_downstream_refuses_unknown_nodes() -> None:
    with pytest.raises(WorkflowError, match=r"node 99 .*not in the workflow"):
        downstream(load("upscale"), ["99"])


@given(prompts())
def test_order_puts_sources_first(prompt: Graph) -> None:
    order = in_order(prompt)
    assert sorted(order) == sorted(prompt)
    for node_id, item in prompt.items():
        for source, _ in links_of(item).values():
            assert order.index(source) < order.index(node_id)


def test_order_of_a_cycle_names_it() -> None:
    with pytest.raises(WorkflowError, match="cycle"):
        in_order({"1": node("A", x=["2", 0]), "2": node("A", x=["1", 0])})


def test_the_large_prompt_is_large() -> None:
    large = all_prompts()["large"]
    assert len(large) > 150
    assert parse_prompt(json.dumps(large), "large") == large
