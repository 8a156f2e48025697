"""Places in a cluster: a node that did not answer once is asked again.

In a process of its own: Ray's library keeps the settings with which a process loads it.
"""

from __future__ import annotations

import subprocess
import sys

ASKING = """
from pathlib import Path
from comfyfleet.fleet import slots
from comfyfleet.fleet.cluster_worker import code_digest
from comfyfleet.fleet.ray_node import CPU_SLOT
from comfyfleet.fleet.spec import Host

def node(name):
    places = {CPU_SLOT: 1}
    return slots._Node(id=name, address=name, name=name, slots=places, free=places)

fit = {"fault": "", "code": code_digest(), "version": "1"}
silent = {"fault": "it did not answer", slots._UNKNOWN: "yes"}
other = {"fault": "", "code": "another", "version": "0"}
answers = {"a": [fit], "b": [silent, silent, fit], "c": [other]}

slots._nodes = lambda: [node(name) for name in answers]
slots._survey = lambda nodes, comfyui: [answers[each.id].pop(0) for each in nodes]
places = slots.Slots(Host(comfyui=Path("/comfyui"), cwd=Path("/")))

def look():
    specs, notes = places.look()
    return [spec.id for spec in specs], [note.split()[0] for note in notes]

def left_out():
    return [note.split()[0] for note in places.notes]

assert look() == (["a-cpu0"], ["b", "c"])
assert look() == ([], []), "what is known already is not said again"
assert left_out() == ["b", "c"], "but it holds"
assert look() == (["b-cpu0"], [])
assert look() == ([], [])
assert left_out() == ["c"]
answers.pop("c")
assert look() == ([], []) and left_out() == [], "it has left the cluster"
"""


def test_a_silent_node_comes_back_and_is_told_of_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKING], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
