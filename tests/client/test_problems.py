"""ComfyUI's answers, as 0.3.75 and newer ones give them, told to the user."""

from __future__ import annotations

from typing import Any

import pytest

from comfyfleet.client.problems import problems_of

PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {}},
    "13": {"class_type": "NoSuchNode", "inputs": {}},
    "1": {"class_type": "SaveImage", "inputs": {}},
    "5:13": {"class_type": "InAGroup", "inputs": {}},
}
#: With the problems of single nodes ComfyUI sends this as well, which says nothing more.
ALL_FAILED = {
    "type": "prompt_outputs_failed_validation",
    "message": "Prompt outputs failed validation",
    "details": "Value not in list: ...",
    "extra_info": {},
}


def reason(kind: str, message: str, details: str = "", **extra: Any) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def node_errors(*reasons: dict[str, Any], node_id: str = "3") -> dict[str, Any]:
    class_type = PROMPT[node_id]["class_type"]
    entry = {"errors": list(reasons), "dependent_outputs": ["1"], "class_type": class_type}
    return {node_id: entry}


def told(error: Any, errors: Any = None) -> list[str]:
    return [str(problem) for problem in problems_of(error, errors, PROMPT)]


@pytest.mark.parametrize("error", [None, "", {}])
@pytest.mark.parametrize("errors", [None, {}])
def test_a_valid_prompt_has_no_problems(error: Any, errors: Any) -> None:
    assert told(error, errors) == []


OLD = reason(
    "invalid_prompt", "Cannot execute because node NoSuchNode does not exist.", "Node ID '#13'"
)
NEW = reason(
    "missing_node_type",
    "Node 'A nice title' not found. The custom node may not be installed.",
    "Node ID '#13'",
    node_id="13",
    class_type="NoSuchNode",
    node_title="A nice title",
)


@pytest.mark.parametrize("error", [OLD, NEW], ids=["0.3.75", "newer"])
@pytest.mark.parametrize("errors", [[], {}, None])
def test_an_unknown_class_is_named_with_its_node(error: Any, errors: Any) -> None:
    (problem,) = problems_of(error, errors, PROMPT)
    assert (problem.node_id, problem.class_type) == ("13", "NoSuchNode")
    assert str(problem) == (
        "node 13 (NoSuchNode): this ComfyUI has no such node class. "
        "Install the pack that provides it, or correct class_type."
    )


def test_an_id_with_a_colon_is_found_whole() -> None:
    (problem,) = problems_of({**NEW, "details": "Node ID '#5:13'"}, {}, PROMPT)
    assert (problem.node_id, problem.class_type) == ("5:13", "InAGroup")


@pytest.mark.parametrize("details", ["Node ID '#99'", "", None])
def test_an_unknown_class_of_an_unknown_node_is_told_in_comfyuis_words(details: Any) -> None:
    (text,) = told({**NEW, "details": details})
    assert text.startswith("Node 'A nice title' not found. The custom node may not be installed")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            reason(
                "value_not_in_list",
                "Value not in list",
                "sampler_name: 'x' not in ['euler', 'ddim']",
                input_name="sampler_name",
            ),
            "input sampler_name: Value not in list (sampler_name: 'x' not in ['euler', 'ddim']). "
            "Put the file where ComfyUI looks for it, or choose one of the list.",
        ),
        (
            reason("required_input_missing", "Required input is missing", "vae", input_name="vae"),
            "input vae: Required input is missing. Connect or fill in this input.",
        ),
        (
            reason(
                "return_type_mismatch",
                "Return type mismatch between linked nodes",
                "vae, received_type(MODEL) mismatch input_type(VAE)",
                input_name="vae",
            ),
            "input vae: Return type mismatch between linked nodes "
            "(vae, received_type(MODEL) mismatch input_type(VAE)). "
            "Connect an output of the type that the input takes.",
        ),
        (
            reason(
                "bad_linked_input",
                "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                "x",
                input_name="x",
            ),
            "input x: Bad linked input, must be a length-2 list of [node_id, slot_index]. "
            'A link is ["node id", output number].',
        ),
        (
            reason(
                "value_smaller_than_min",
                "Value -1 smaller than min of 1",
                "steps",
                input_name="steps",
            ),
            "input steps: Value -1 smaller than min of 1. Give a value in the input's range.",
        ),
        (
            reason(
                "invalid_input_type",
                "Failed to convert an input value to a INT value",
                "steps, many, invalid literal for int() with base 10: 'many'",
                input_name="steps",
            ),
            "input steps: Failed to convert an input value to a INT value "
            "(steps, many, invalid literal for int() with base 10: 'many'). "
            "Give a value of the input's type.",
        ),
        (
            reason("custom_validation_failed", "Custom validation failed for node", "image - no"),
            "Custom validation failed for node (image - no).",
        ),
        (
            reason("exception_during_validation", "Exception when validating node", "'7'"),
            "Exception when validating node ('7').",
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_nodes_problem_says_input_reason_and_remedy(given: Any, expected: str) -> None:
    assert told(ALL_FAILED, node_errors(given)) == [f"node 3 (KSampler): {expected}"]


def test_all_problems_of_all_nodes_are_told() -> None:
    one, two = (reason("required_input_missing", f"Missing {i}", f"{i}") for i in "ab")
    errors = {**node_errors(one, two), **node_errors(one, node_id="1")}
    assert [text.split(":")[0] for text in told(ALL_FAILED, errors)] == [
        "node 3 (KSampler)",
        "node 3 (KSampler)",
        "node 1 (SaveImage)",
    ]


def test_problems_count_although_other_outputs_are_valid() -> None:
    """ComfyUI would run those: POST /prompt answers 200 without any error."""
    assert len(told(None, node_errors(reason("required_input_missing", "Missing", "x")))) == 1


def test_a_prompt_without_outputs() -> None:
    assert told(reason("prompt_no_outputs", "Prompt has no outputs")) == [
        "Prompt has no outputs. Add a node that saves or previews something, such as SaveImage."
    ]


def test_an_answer_that_is_mere_text() -> None:
    assert told("something is wrong") == ["something is wrong"]


def test_an_error_without_further_words() -> None:
    assert told({"type": "new", "message": "New kind of error."}) == ["New kind of error."]
    errors = {"3": {"errors": [{"type": "new", "message": "Odd", "extra_info": None}]}}
    assert told(None, errors) == ["node 3 (unknown class): Odd."]
