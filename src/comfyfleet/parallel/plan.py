"""How a model family is split over its tokens, as data.

A plan names modules of ComfyUI's own, unmodified model and says what crosses their borders: which
arguments are token streams, which follow a stream, where streams are whole again. The engine reads
it; a family adds no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

#: Names of streams in the order in which they lie behind one another in a tensor.
Streams: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """An argument with one entry per token of ``of`` along ``dim``: rotary embeddings, masks.

    A size of 1 along ``dim`` holds for all tokens, and stays. In a tuple, the tensors have their
    entries along ``in_tuple``.
    """

    dim: int
    of: Streams
    in_tuple: int = 0


@dataclass(frozen=True, slots=True)
class Frames:
    """An argument with one entry per frame of the stream along ``dim``, as ``repeat_e`` of Wan.

    With n frames, token i takes the entry ``i // (tokens // n)``, or ``i // (tokens // n + 1)``
    where n does not divide the tokens. Tensors with other than ``ndim`` dims are not per frame.
    An object stands for the tensor that is its ``data``.
    """

    dim: int
    of: str
    ndim: int


@dataclass(frozen=True, slots=True)
class Ranges:
    """An argument that is a list of (first token, end or None, what holds there, if anything).

    ``behind``: the forward moved all but a leading zero by the tokens that it saw of that stream,
    which are this rank's alone.
    """

    of: Streams
    behind: str = ""


@dataclass(frozen=True, slots=True)
class Position:
    """An argument that is a position in the stream: before it one thing holds, then another."""

    of: str


Follows: TypeAlias = Tokens | Frames | Ranges | Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What happens at the modules of one path.

    ``path`` is dotted; ``*`` stands for every element of a list, ``0`` and ``-1`` for the first and
    the last. ``enter``: arguments that are whole (batch, tokens, ...) and become this rank's
    tokens. ``local``: arguments that follow the streams. ``attends``: the streams over which the
    attention called inside the module goes, one entry per call, the last for all further ones; an
    empty entry is attention that stays local (cross-attention). ``own_mask``: the module makes the
    mask of that attention itself, for this rank's keys and alike for all queries. ``leave``:
    outputs (by index; 0 for a single one) that are this rank's tokens and become whole.

    ``keys``: the streams that this attention asks, where they are not those that ask.
    ``kept``: streams that, where others enter and leave, are this rank's tokens before and after.
    ``token_dims``: dims that the tokens lie along where they enter, as 3 for (batch, frames,
    height, width, ...); the module gets (batch, tokens, 1, 1, ...). ``refuses``: arguments with
    which the module cannot be split exactly, each with the reason. Arguments are named as the
    module's forward declares them, those of its ``*args`` by their number; ``x.0`` enters as the
    first item of the tuple ``x``.
    """

    path: str
    enter: Mapping[str, Streams] = field(default_factory=dict)
    local: Mapping[str, Follows] = field(default_factory=dict)
    attends: tuple[Streams, ...] = ()
    own_mask: bool = False
    keys: Streams = ()
    leave: Mapping[int, Streams] = field(default_factory=dict)
    kept: Streams = ()
    token_dims: int = 1
    refuses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """A list of a control dict that is added to a stream between blocks.

    Where the last block of the list ``joined_by`` makes the stream whole, its entry stays whole.
    """

    of: str
    joined_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """How one family is split.

    ``models`` are the full class names of the diffusion models that it describes, subclasses not
    included; with ``only_if``, those of them that have this (dotted) attribute and it is true: a
    class may differ between versions of ComfyUI. ``control`` says how the lists of a control dict
    follow; a list that is not named cannot be split. ``refuses`` names arguments of the forward
    that cannot be split exactly when they are given, each with the reason; ``refused_models`` does
    so for whole classes.
    """

    family: str
    models: tuple[str, ...]
    parts: tuple[Part, ...]
    only_if: str = ""
    control: Mapping[str, Residuals] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    refused_models: Mapping[str, str] = field(default_factory=dict)
