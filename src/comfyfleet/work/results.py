"""What comes back from a worker, as plain data that needs neither torch nor ComfyUI to be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor stood: its buffer, its dtype as torch names it, and its shape."""

    buffer: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VideoRef:
    """A VIDEO as its parts: frames [T, H, W, C], sound, and frames per second as a fraction."""

    components: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """A value without its tensors, and their bytes: one flat uint8 array for each."""

    skeleton: Any
    buffers: list[Any] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file that an output node saved. ``name`` may hold folders, with forward slashes."""

    node_id: str
    name: str
    data: bytes = field(repr=False)
    #: From a machine that is not ours: it replaces no file that is there.
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a unit gave: the values at its return node (if it has one), and the saved files."""

    values: Packed | None
    files: tuple[OutputFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The done share of a running unit, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A file in a worker's own folder: ``kind`` is output or temp, as ComfyUI calls them.

    ``stamp`` tells one file from a later one of the same name; ``data`` is None if the worker has
    told the file long ago and keeps only its name. A ``foreign`` file, of a machine that is not
    trusted, replaces none of the owner's.
    """

    kind: str
    subfolder: str
    name: str
    data: bytes | None = field(repr=False)
    stamp: tuple[int, int] = (0, 0)
    foreign: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the file on its worker, for as long as that lives."""
        return (self.kind, self.subfolder, self.name)


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker's ComfyUI told the client of a mirrored prompt, with the files it speaks of.

    ``event`` is the name of a JSON event or the number of a binary one; ``HISTORY`` comes last,
    with ComfyUI's own record of the prompt.
    """

    event: str | int
    data: Any = field(repr=False)
    files: tuple[SavedFile, ...] = ()


#: No event of ComfyUI's.
HISTORY = "comfyfleet_history"
