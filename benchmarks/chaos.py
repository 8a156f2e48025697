"""Runs with faults at random moments: is every picture there in the end, right, and once?

A run is a handful of prompts, queued over HTTP at a real ComfyUI whose queue two workers share, and
one or two faults (see ``benchmarks.faults``). Some masters compute prompts too. All prompts save
under one name, so that a file that is saved twice, or over another, is found. Pictures are random
numbers by a seed, so the files of an undisturbed run are known before.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.faults import KINDS, WORKERS, Fault, Saboteur, draw_faults
from benchmarks.server import Server, comfyui_server, wait_until

#: A master serves so many seeds, so that what one leaves behind would disturb the next. Which they
#: are, and whether it computes, does not depend on where a series begins.
RUNS_PER_MASTER = 4
#: A prompt that has not ended so long after the last fault hangs.
_HANGS_S = 150.0
#: A worker is back by then, also after the longest pause before a start.
_BACK_S = 120.0
SIDE = 32
#: Of the master's log, shown after a run that went wrong.
_LOG_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A prompt that saves ``count`` pictures, of which the first has this seed."""

    at_s: float
    seed: int
    count: int
    seconds: float
    #: Each picture is a share of a collector, and not all of one batch.
    collected: bool

    def prompt(self, orders: Path) -> dict[str, Any]:
        batch = 1 if self.collected else self.count
        picture = {"seed": self.seed, "count": batch, "side": SIDE}
        pause = {"image": ["1", 0], "seconds": self.seconds, "orders": str(orders)}
        prompt: dict[str, Any] = {
            "1": {"class_type": "BenchImages", "inputs": picture},
            "2": {"class_type": "BenchPause", "inputs": pause},
            "3": _node("SaveImage", images=["2", 0], filename_prefix="chaos"),
        }
        if self.collected:
            picture["seed"] = ["4", 0]
            prompt["4"] = _node("FleetSeed", seed=self.seed)
            prompt["5"] = _node("FleetCollector", images=["2", 0], shares=self.count)
            prompt["5"]["inputs"]["delegate"] = False
            prompt["3"]["inputs"]["images"] = ["5", 0]
        return prompt

    def pictures(self) -> list[str]:
        """The digests of the pictures that an undisturbed run saves, in order."""
        if self.collected:
            return [noise(self.seed + share, 1)[0] for share in range(self.count)]
        return noise(self.seed, self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run: what is queued when, and what goes wrong when."""

    seed: int
    tasks: tuple[Task, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {'; '.join(map(str, self.faults)) or 'no fault'}"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was found after a run; empty but for its seconds if all is well."""

    seconds: float = 0.0
    #: Pictures that are not there, and pictures that are there and should not.
    lost: int = 0
    duplicated: int = 0
    #: Prompts that have not ended, and workers that did not come back.
    hung: list[str] = field(default_factory=list)
    #: Sentences: prompts that failed, histories that name other files.
    wrong: list[str] = field(default_factory=list)
    #: Files that a master was writing when it was killed, as any ComfyUI leaves them.
    cut_off: int = 0

    @property
    def well(self) -> bool:
        return not (self.lost or self.duplicated or self.hung or self.wrong)


def run(runs: int = 50, seed: int | None = None) -> dict[str, Any]:
    """``runs`` runs, of the seeds from ``seed`` on, each told on stderr with what was found."""
    first = random.SystemRandom().randrange(10**6) if seed is None else seed
    plans = [draw_plan(first + number) for number in range(runs)]
    outcomes, computing = [], 0
    for group, shared in itertools.groupby(plans, lambda plan: plan.seed // RUNS_PER_MASTER):
        computes = random.Random(group).random() < 0.5
        computing += computes
        outcomes += disturb_all(list(shared), master_computes=computes)
    faults = Counter(fault.kind for plan in plans for fault in plan.faults)
    return {
        "seed": first,
        "runs": runs,
        "computing_masters": computing,
        "faults": faults.total(),
        "lost": sum(outcome.lost for outcome in outcomes),
        "duplicated": sum(outcome.duplicated for outcome in outcomes),
        "hung": sum(len(outcome.hung) for outcome in outcomes),
        "wrong": sum(len(outcome.wrong) for outcome in outcomes),
        "cut_off": sum(outcome.cut_off for outcome in outcomes),
        "longest_s": round(max(outcome.seconds for outcome in outcomes), 1),
        "faults_by_kind": dict(sorted(faults.items())),
    }


def draw_plan(seed: int, kinds: tuple[str, ...] = KINDS) -> Plan:
    """The run of a seed; with no ``kinds`` it is undisturbed."""
    rng = random.Random(seed)
    tasks = [
        Task(
            at_s=rng.uniform(0, 1.5),
            seed=seed * 1000 + number * 10,
            count=rng.randint(1, 3),
            seconds=rng.uniform(0.2, 1.2),
            collected=rng.random() < 0.2,
        )
        for number in range(rng.randint(5, 8))
    ]
    return Plan(seed=seed, tasks=tuple(tasks), faults=tuple(draw_faults(rng, kinds)))


def disturb_all(plans: list[Plan], *, master_computes: bool) -> list[Outcome]:
    """The runs, one after the other, at one master; then nothing of it may be left."""
    outcomes, role = [], "computes" if master_computes else "computes nothing"
    with comfyui_server(workers="cpu,cpu", master_computes=master_computes) as server:
        server.share()
        for plan in plans:
            outcomes.append(disturb(server, plan))
            print(plan, f"(the master {role}) ->", outcomes[-1], file=sys.stderr, flush=True)
            if not outcomes[-1].well:
                print(server.log()[-_LOG_CHARACTERS:], file=sys.stderr, flush=True)
    if left := server.processes():
        outcomes[-1].wrong.append(f"processes are left: {left}")
    return outcomes


def disturb(server: Server, plan: Plan) -> Outcome:
    """One run, from the first prompt until all is repaired."""
    begun, outcome = time.monotonic(), Outcome()
    with _orders(server) as orders:
        saboteur = Saboteur(server, orders)
        before = _files(server)
        ids = _play(server, plan, saboteur, lambda task: task.prompt(orders))
        _wait(server, ids, outcome)
        outcome.seconds = round(time.monotonic() - begun, 1)
        found = _pictures(_files(server) - before, plan, outcome)
        _compare(plan, found, outcome)
        for prompt_id, task in ids.items():
            entry = server.history(prompt_id)
            if entry is not None:
                outcome.wrong += _differences(entry, found, task)
            elif not saboteur.restarted:
                outcome.wrong.append(f"prompt {prompt_id} is not in the history")
        saboteur.repair()
    _recover(server, outcome)
    return outcome


def _play(
    server: Server, plan: Plan, saboteur: Saboteur, prompt_of: Callable[[Task], Any]
) -> dict[str, Task]:
    """Do everything at its time; the tasks by the ids of their prompts."""
    ids: dict[str, Task] = {}

    def queue(task: Task) -> None:
        ids[server.queue(prompt_of(task))] = task

    deeds: list[tuple[float, Callable[[Any], None], Any]] = []
    deeds += [(task.at_s, queue, task) for task in plan.tasks]
    for fault in plan.faults:
        deeds.append((fault.at_s, saboteur.do, fault))
        deeds.append((fault.at_s + fault.lasts_s, saboteur.undo, fault))
    begun = time.monotonic()
    for at_s, do, what in sorted(deeds, key=lambda deed: deed[0]):
        time.sleep(max(0.0, begun + at_s - time.monotonic()))
        do(what)
    return ids


def _wait(server: Server, ids: dict[str, Task], outcome: Outcome) -> None:
    if not wait_until(lambda: not server.queued() & set(ids), _HANGS_S):
        outcome.hung += [f"prompt {prompt_id}" for prompt_id in server.queued() & set(ids)]


def _pictures(paths: set[Path], plan: Plan, outcome: Outcome) -> dict[str, str]:
    """Their digests by name, without the file that a killed master has not written to the end."""
    found, may_be_cut = {}, sum(fault.kind == "master killed" for fault in plan.faults)
    for path in paths:
        try:
            found[path.name] = digest_of(path)
        except OSError as error:  # so says Pillow of what is no picture, or not a whole one
            outcome.cut_off += 1
            if outcome.cut_off > may_be_cut:  # its one prompt thread writes one file at a time
                outcome.wrong.append(f"a file is no picture: {error}")
    return found


def _compare(plan: Plan, found: Mapping[str, str], outcome: Outcome) -> None:
    """The pictures in the output folder against those of an undisturbed run."""
    wanted = Counter(digest for task in plan.tasks for digest in task.pictures())
    there = Counter(found.values())
    outcome.lost, outcome.duplicated = (wanted - there).total(), (there - wanted).total()


def _differences(entry: dict[str, Any], found: Mapping[str, str], task: Task) -> list[str]:
    """What is not as it should be in the history of a prompt."""
    if entry["status"]["status_str"] != "success":
        return [f"a prompt failed: {entry['status']['messages'][-1]}"]
    names = [image["filename"] for image in entry["outputs"]["3"]["images"]]
    if [found.get(name) for name in names] != task.pictures():
        return [f"the history of a prompt names other pictures: {names}"]
    return []


def _files(server: Server) -> set[Path]:
    """All that was saved, whoever saved it."""
    return {path for path in (server.folder / "output").rglob("*") if path.suffix == ".png"}


def _recover(server: Server, outcome: Outcome) -> None:
    """Wait until both workers are there again; one that was given up is started by its owner."""
    server.tell_worker("all", "enable")
    if wait_until(lambda: _alive(server) == WORKERS, _BACK_S):
        return
    outcome.hung += [f"worker {name}" for name in WORKERS if name not in _alive(server)]


def _alive(server: Server) -> tuple[str, ...]:
    fleet = server.fleet()
    return tuple(sorted(worker.id for worker in fleet.workers)) if fleet else ()


@contextmanager
def _orders(server: Server) -> Iterator[Path]:
    folder = server.folder / "orders"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def noise(seed: int, count: int) -> list[str]:
    """What ``BenchImages`` makes and ``SaveImage`` saves."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, SIDE, SIDE, 3, generator=generator).numpy()
    return [_sum(np.clip(255.0 * each, 0, 255).astype(np.uint8)) for each in pictures]


def digest_of(path: Path) -> str:
    """Of the picture in a file, as ``noise`` has them."""
    with Image.open(path) as picture:
        return _sum(np.asarray(picture))


def _sum(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
