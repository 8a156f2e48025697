"""What holds for the whole package: nothing is mutated, nothing heavy is imported."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

import comfyfleet.graph as graph
from tests.graph.prompts import Graph, all_prompts, node, prompts


def last(prompt: Graph) -> str:
    return graph.in_order(prompt)[-1]


CALLS: dict[str, Callable[[Graph], Any]] = {
    "clone_share": lambda prompt: graph.clone_share(prompt, (last(prompt), 0), 1, "x."),
    "cut": lambda prompt: graph.cut(prompt, node("R", v=[last(prompt), 0]), "new"),
    "digest": graph.digest,
    "downstream": lambda prompt: graph.downstream(prompt, [graph.in_order(prompt)[0]]),
    "find_files": lambda prompt: graph.find_files(prompt, lambda folder, name: True),
    "find_problems": graph.find_problems,
    "find_seeds": graph.find_seeds,
    "in_order": graph.in_order,
    "missing_files": lambda prompt: graph.missing_files(prompt, lambda folder, name: False),
    "model_key": graph.model_key,
    "node_digests": graph.node_digests,
    "upstream": lambda prompt: graph.upstream(prompt, [last(prompt)]),
    "vary": lambda prompt: graph.vary(prompt, 2),
    "vary_seeds": lambda prompt: graph.vary_seeds(prompt, 2),
    "varying_nodes": graph.varying_nodes,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", all_prompts())
def test_real_prompts_are_not_mutated(call: Callable[[Graph], Any], name: str) -> None:
    prompt = all_prompts()[name]
    before = copy.deepcopy(prompt)
    call(prompt)
    assert prompt == before


@given(prompts())
def test_random_prompts_are_not_mutated(prompt: Graph) -> None:
    before = json.dumps(prompt)
    for call in CALLS.values():
        call(prompt)
    assert json.dumps(prompt) == before


def test_set_input_does_not_mutate() -> None:
    prompt = {"1": node("A", x={"deep": [1]})}
    graph.set_input(prompt, "1.x=2")
    assert prompt == {"1": node("A", x={"deep": [1]})}


def test_public_names_exist() -> None:
    assert all(hasattr(graph, name) for name in graph.__all__)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, comfyfleet.graph;"
        "print(sorted({'torch', 'ray', 'numpy', 'comfyfleet.work'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
