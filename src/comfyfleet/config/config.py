"""What the owner set: the environment before fleet.yaml, and that before the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from comfyfleet.config import document
from comfyfleet.config.remotes import Remote, remote
from comfyfleet.config.schema import Document, LauncherEntry, WorkerEntry
from comfyfleet.config.settings import BY_KEY, Setting
from comfyfleet.errors import InputError

T = TypeVar("T")

#: The file's name in the owner's folder.
FILE_NAME = "fleet.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One reading of fleet.yaml, with the environment on top of it."""

    path: Path = Path(FILE_NAME)
    document: Document = field(default_factory=Document)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def value(self, setting: Setting[T]) -> T:
        """What is set. Raises InputError for a wrong value in the environment."""
        text = self.environ.get(setting.env, "").strip()
        if text:
            return setting.parse(text, setting.env)
        found: T | None = getattr(self.document.settings, setting.key, None)
        return setting.default if found is None else found

    def source(self, setting: Setting[Any]) -> str:
        """Where its value comes from: environment, fleet.yaml or default."""
        if self.environ.get(setting.env, "").strip():
            return "environment"
        found = getattr(self.document.settings, setting.key, None)
        return "default" if found is None else FILE_NAME

    @property
    def workers(self) -> list[WorkerEntry]:
        """The workers on the network, as the file describes them."""
        return self.document.workers

    def launcher(self, name: str) -> LauncherEntry:
        """The launcher of that name. Raises InputError."""
        found = {entry.name: entry for entry in self.document.launchers}
        if name not in found:
            known = ", ".join(found) or "none; add one below launchers:"
            raise InputError(f"{self.path} has no launcher {name!r}; it has {known}.")
        return found[name]

    def remote(self, entry: WorkerEntry) -> Remote:
        """One of ``workers`` with its token. Raises InputError."""
        return remote(entry, self.path.parent, self.environ)

    def remotes(self) -> list[Remote]:
        """All of them with their tokens. Raises InputError for the first that is wrong."""
        return [self.remote(entry) for entry in self.workers]

    def shown(self) -> dict[str, Any]:
        """Everything as plain data, without secrets."""
        settings = {
            key: {
                "value": self.value(setting),
                "source": self.source(setting),
                "default": setting.default,
                "env": setting.env,
                "help": setting.help,
            }
            for key, setting in BY_KEY.items()
        }
        workers = [entry.model_dump(exclude_none=True) for entry in self.workers]
        return {"path": str(self.path), "settings": settings, "workers": workers}


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read a fleet.yaml; one that does not exist says nothing.

    Raises InputError that names file, line, key and what is allowed.
    """
    text = document.read_text(path)
    data = document.parse(text, path)
    return Config(path=path, document=document.validate(data, path), environ=environ)
