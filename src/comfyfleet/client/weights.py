"""How much memory the models of a prompt take at the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from comfyfleet.graph import weights_of
from comfyfleet.work import Prompt


def weights_bytes(
    prompt: Prompt, folders: Sequence[Path], there: Mapping[str, int] | None = None
) -> int:
    """Bytes of the weights files that it names, as far as the owner has them in ``folders``.

    Of others those that the worker itself says to have (``there``, by name).
    """
    names = (name for name in weights_of(prompt) if ".." not in name.split("/"))
    return sum(_size(name, folders) or (there or {}).get(name, 0) for name in names)


def _size(name: str, folders: Sequence[Path]) -> int:
    for folder in folders:
        try:
            return (folder / name).stat().st_size
        except OSError:
            continue
    return 0
