"""ComfyUI's own validation, told as problems that say which node, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyfleet.errors import Problem

#: ComfyUI's error types and what a user can do about each.
_ADVICE = {
    "value_not_in_list": "Put the file where ComfyUI looks for it, or choose one of the list.",
    "required_input_missing": "Connect or fill in this input.",
    "return_type_mismatch": "Connect an output of the type that the input takes.",
    "bad_linked_input": 'A link is ["node id", output number].',
    "invalid_input_type": "Give a value of the input's type.",
    "value_smaller_than_min": "Give a value in the input's range.",
    "value_bigger_than_max": "Give a value in the input's range.",
    "prompt_no_outputs": "Add a node that saves or previews something, such as SaveImage.",
}


def problems_of(
    error: Mapping[str, Any] | str | None,
    node_errors: Mapping[str, Any] | None,
    prompt: Mapping[str, Mapping[str, Any]],
) -> list[Problem]:
    """All problems in an answer of ``validate_prompt`` or of POST /prompt; empty if it is valid."""
    problems = [
        Problem(message=_sentence(reason), node_id=node_id, class_type=entry.get("class_type"))
        for node_id, entry in (node_errors or {}).items()
        for reason in entry.get("errors", [])
    ]
    if problems or not error:
        return problems
    if isinstance(error, str):
        return [Problem(message=error)]
    return _unknown_classes(error, prompt) or [Problem(message=_sentence(error))]


def _unknown_classes(
    error: Mapping[str, Any], prompt: Mapping[str, Mapping[str, Any]]
) -> list[Problem]:
    # ComfyUI 0.3.75 says it with type invalid_prompt, newer ones with missing_node_type; both
    # name the node in the details.
    if error.get("type") not in ("invalid_prompt", "missing_node_type"):
        return []
    return [
        Problem(
            message="this ComfyUI has no such node class. Install the pack that provides it, or "
            "correct class_type.",
            node_id=node_id,
            class_type=node.get("class_type"),
        )
        for node_id, node in prompt.items()
        if f"#{node_id}'" in str(error.get("details", ""))
    ]


def _sentence(reason: Mapping[str, Any]) -> str:
    name = (reason.get("extra_info") or {}).get("input_name")
    where = f"input {name}: " if name else ""
    message = str(reason.get("message", "")).rstrip(".")
    details = str(reason.get("details", ""))
    detail = f" ({details})" if details and details != name else ""
    advice = _ADVICE.get(str(reason.get("type")), "")
    return f"{where}{message}{detail}. {advice}".rstrip()
