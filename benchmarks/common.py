"""What the benchmarks share: a host with the benchmark's pack, and units of one prompt."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyfleet.config import find_comfyui
from comfyfleet.fleet import Fleet, Host, new_run_id
from comfyfleet.planner import cpu_device
from comfyfleet.work import Unit

_HERE = Path(__file__).resolve().parent


@contextmanager
def cpu_fleet(workers: int) -> Iterator[Fleet]:
    """A running fleet of CPU workers that know the benchmark's nodes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = bench_flags(Path(folder))
        host = Host(comfyui=find_comfyui(), flags=flags, cwd=Path.cwd())
        with Fleet([cpu_device()] * workers, host) as fleet:
            yield fleet


def bench_flags(folder: Path) -> tuple[str, ...]:
    """Flags of a ComfyUI that is to know the benchmark's nodes; what they name is in ``folder``."""
    # ComfyUI loads every folder in a custom_nodes path as a pack: ours holds just this one.
    packs = folder / "packs"
    if not packs.exists():
        packs.mkdir()
        (packs / "comfyfleet-bench").symlink_to(_HERE / "pack")
    paths = folder / "paths.yaml"
    paths.write_text(f"bench:\n  custom_nodes: {packs}\n", encoding="utf-8")
    return ("--extra-model-paths-config", str(paths))


def units_of(prompts: list[Mapping[str, Any]]) -> list[Unit]:
    """One unit per prompt, in one run."""
    run_id = new_run_id()
    return [Unit(run_id=run_id, index=index, prompt=prompt) for index, prompt in enumerate(prompts)]
