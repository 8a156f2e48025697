"""``comfyfleet bench``: the benchmarks of a checkout."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping

from comfyfleet.cli.show import console
from comfyfleet.cli.status import print_json
from comfyfleet.config import pack_dir
from comfyfleet.errors import InputError

#: Benchmarks by name: a module of ``benchmarks`` with ``run(**options) -> dict``.
NAMES = (
    "balance", "batch", "blend", "cfg", "chaos", "dispatch", "fanout", "hosts", "idle", "queue",
    "sampling", "sequence", "tiles", "transport", "url", "vae", "video", "wan",
)  # fmt: skip


def run_benchmark(name: str, options: Mapping[str, object], *, as_json: bool) -> None:
    """Run one benchmark with its own options and print its figures."""
    if name not in NAMES:
        raise InputError(f"no benchmark {name!r}; there is {', '.join(NAMES)}.")
    root = pack_dir()
    if not (root / "benchmarks").is_dir():
        raise InputError("benchmarks are part of a checkout of ComfyFleet: clone it first.")
    sys.path.insert(0, str(root))
    run = importlib.import_module(f"benchmarks.{name}").run
    if unknown := sorted(set(options) - set(inspect.signature(run).parameters)):
        raise InputError(f"benchmark {name} has no option --{unknown[0]}.")
    figures = run(**options)
    if as_json:
        print_json({"benchmark": name, **figures})
        return
    for key, value in figures.items():
        console.print(f"{key}: {value}")
