"""A batch of whole prompts as the command runs it: units, the output folder and its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from comfyfleet.errors import InputError, RunFailed
from comfyfleet.fleet.run import Delivery
from comfyfleet.graph import (
    digest,
    find_seeds,
    model_key,
    parse_prompt,
    repeat,
    set_input,
    vary_seeds,
    varying_nodes,
)
from comfyfleet.work import Prompt, Unit

_MANIFEST = "manifest.json"
#: Of folders on any system, and what no name may hold.
_SEPARATORS = re.compile(r"[/\\:\x00-\x1f]")
#: All units of a batch are in memory, about a kilobyte each.
MAX_COUNT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A workflow, how often, and from which seed."""

    prompt: Prompt
    count: int
    seed: int | None
    name: str

    @classmethod
    def read(cls, path: Path, *, count: int, seed: int | None, assignments: Sequence[str]) -> Batch:
        """A batch from a workflow file. Raises InputError for anything that is wrong with it."""
        prompt: Prompt = parse_prompt(_text(path), str(path))
        for assignment in assignments:
            prompt = set_input(prompt, assignment)
        return cls.of(prompt, count=count, seed=seed, name=path.stem)

    @classmethod
    def of(cls, prompt: Prompt, *, count: int, seed: int | None, name: str) -> Batch:
        """A batch from a prompt that is parsed already."""
        if not 1 <= count <= MAX_COUNT:
            raise InputError(f"--count {count}: give 1 or more, up to {MAX_COUNT}.")
        if seed is not None and not 0 <= seed < 2**64:
            raise InputError(f"--seed {seed}: give 0 to {2**64 - 1}.")
        seeds = find_seeds(prompt)
        if seed is not None and not seeds:
            raise InputError(f"--seed {seed}: the workflow has no seed input to set.")
        if count > 1 and not seeds and not varying_nodes(prompt):
            raise InputError(
                f"--count {count}: all runs would be equal, as the workflow has no input named "
                "seed or noise_seed with a number, and no Fleet Seed or Fleet Value."
            )
        return cls(prompt=prompt, count=count, seed=seed, name=name)

    @property
    def digest(self) -> str:
        """Equal for batches whose run number i is the same for every i."""
        based = self.prompt if self.seed is None else vary_seeds(self.prompt, 0, self.seed)
        return digest(based)

    def units(self, run_id: str, skip: Sequence[int] = ()) -> list[Unit]:
        """One unit per run that is not to be skipped."""
        key = model_key(self.prompt)
        left = sorted(set(range(self.count)) - set(skip))
        return [
            Unit(
                run_id=run_id,
                index=index,
                prompt=repeat(self.prompt, index, self.seed),
                model_key=key,
            )
            for index in left
        ]


class OutputFolder:
    """Results of a batch on disk. The manifest names them; it is replaced whole, never half."""

    def __init__(self, folder: Path, batch: Batch, *, resume: bool) -> None:
        self.folder = folder
        self._manifest: dict[str, Any] = {"batch": batch.digest, "name": batch.name, "units": {}}
        path = folder / _MANIFEST
        if resume and not path.exists():
            raise InputError(f"--resume: {path} does not exist. Start without --resume.")
        self._lock = _locked(folder)
        if path.exists():
            self._manifest = self._adopted(path, batch, resume)

    def close(self) -> None:
        """Let others write here again."""
        self._lock.release()

    @property
    def finished(self) -> list[int]:
        """Runs whose files are all there."""
        return [
            int(index)
            for index, unit in self._manifest["units"].items()
            if all((self.folder / name).is_file() for name in unit["files"])
        ]

    def save(self, delivery: Delivery) -> list[Path]:
        """Write a unit's files and note them. Raises InputError if the unit saved nothing."""
        unit, result = delivery.unit, delivery.result
        if not result.files:
            raise InputError("the workflow saves no files. Add a node such as SaveImage.")
        names = _names(unit.index, [file.name for file in result.files])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, file in zip(names, result.files, strict=True):
                (self.folder / name).write_bytes(file.data)
        except OSError as error:
            raise RunFailed(f"cannot save run {unit.index} in {self.folder}: {error}") from error
        self._manifest["units"][str(unit.index)] = {
            "files": names,
            "worker": delivery.worker_id,
            "seconds": round(delivery.seconds, 3),
        }
        self._write()
        return [self.folder / name for name in names]

    def _adopted(self, path: Path, batch: Batch, resume: bool) -> dict[str, Any]:
        if not resume:
            raise InputError(
                f"{path} exists: this folder holds the results of a run. Add --resume to go on "
                "with it, or give another folder with --out."
            )
        manifest: dict[str, Any] = _parsed(path)
        if manifest.get("batch") != batch.digest:
            raise InputError(
                f"--resume: {path} belongs to another workflow, seed or setting "
                f"({manifest.get('name')!r}). Give another folder with --out."
            )
        return manifest

    def _write(self) -> None:
        draft = self.folder / f"{_MANIFEST}.new"
        draft.write_text(json.dumps(self._manifest, indent=1), encoding="utf-8")
        draft.replace(self.folder / _MANIFEST)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the workflow {path}: {error}") from None


def _locked(folder: Path) -> FileLock:
    """The folder, made if need be, for this process alone until it ends."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"--out {folder}: another run writes there. Give another.") from None
    except OSError as error:
        raise InputError(f"--out {folder}: cannot write there ({error}). Give another.") from None
    return lock


def _names(index: int, names: Sequence[str]) -> list[str]:
    """File names of one unit: flat, beginning with its number, all different."""
    flat = [f"{index:04d}_{_SEPARATORS.sub('_', name)}" for name in names]
    return [
        name if name not in flat[:place] else f"{name[:4]}_{place}{name[4:]}"
        for place, name in enumerate(flat)
    ]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for index, unit in manifest["units"].items():
            int(index)
            if not all(isinstance(name, str) for name in unit["files"]):
                raise ValueError(f"the files of run {index} are no names")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged ({text}). Give another folder with --out.") from None
    return manifest
