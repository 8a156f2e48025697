"""Each setting has a test in which a real ComfyUI, or the code that asks for it, goes by it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from comfyfleet.config import SETTINGS

TESTS = Path(__file__).resolve().parents[1]
_AT_START = (
    "cluster/test_configured.py::test_what_is_wrong_is_said_at_the_start_and_what_is_right_holds"
)
EFFECTS = {
    "workers": _AT_START,
    "share": "cluster/test_hostile_sharing.py::test_its_file_replaces_none_of_the_owners",
    "master": _AT_START,
    "journal": "cluster/test_queue_restart.py::test_a_queue_that_is_not_written_down_is_forgotten",
    "stagger": "cluster/test_queue.py::test_in_a_staggered_start_one_device_loads_after_the_other",
    "branches": "cluster/test_branches.py::test_branches_run_at_the_same_time_as_the_rest",
    "hosts": "cluster/test_hostile.py::test_its_own_page_may_and_says_nothing_to_others",
    "cluster": "cluster/test_cluster_master.py::"
    "test_a_prompt_with_a_picture_runs_on_the_node_whose_log_is_shown",
    "insecure_cluster": "fleet/test_cluster_choice.py::test_its_owner_may_insist",
    "accept_models": "cluster/test_models_copied.py::"
    "test_models_are_not_accepted_unless_their_owner_says_so",
}


def test_each_setting_is_in_the_list() -> None:
    assert [setting.key for setting in SETTINGS if setting.key] == list(EFFECTS)


@pytest.mark.parametrize("key", EFFECTS)
def test_its_test_is_there(key: str) -> None:
    file, _, name = EFFECTS[key].partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
