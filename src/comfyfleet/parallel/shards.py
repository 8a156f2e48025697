"""One forward's split: which streams there are, what follows them, and where attention is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.attention import Request, sequence_attention
from comfyfleet.parallel.layout import Joint, Stream, split_stream
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.plan import (
    Follows,
    Frames,
    ParallelPlan,
    Part,
    Position,
    Ranges,
    Residuals,
    Streams,
    Tokens,
)


class _Attention:
    """The streams that the attention inside one module goes over, call by call."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.calls = 0

    def next(self) -> Streams:
        self.calls += 1
        return self.part.attends[min(self.calls, len(self.part.attends)) - 1]


class Shards:
    """This rank's state during one forward."""

    def __init__(self, plan: ParallelPlan, mesh: SequenceMesh, model: nn.Module) -> None:
        self._plan = plan
        self._model = model
        self._mesh = mesh
        self._streams: dict[str, Stream] = {}
        #: The dims that the tokens of a stream lay along before it was split.
        self._grids: dict[str, Sequence[int]] = {}
        self._attention: list[_Attention] = []
        #: (identity of a whole argument, rule) -> the argument, to keep its identity, and its part.
        self._known: dict[tuple[int, Follows], tuple[Any, Any]] = {}
        self._residuals: list[tuple[Residuals, int, list[Tensor | None]]] = []
        self._left = False

    # What goes into the forward.

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Transformer options whose attention goes over all ranks where the plan says so."""
        name = "optimized_attention_override"
        return {**options, name: partial(self._attend, options.get(name))}

    def control(self, control: Mapping[str, Any]) -> dict[str, Any]:
        """A control dict whose lists get this rank's residuals as soon as their stream is split."""
        copies: dict[str, Any] = dict(control)
        for name, entries in control.items():
            if not entries or all(entry is None for entry in entries):
                continue
            if name not in self._plan.control:
                raise CannotSplit(
                    f"{self._plan.family}: control residuals of kind {name!r} cannot be split."
                )
            copies[name] = list(entries)
            rule = self._plan.control[name]
            whole_at = len(getattr(self._model, rule.joined_by)) - 1 if rule.joined_by else -1
            self._residuals.append((rule, whole_at, copies[name]))
        return copies

    def check_used(self) -> None:
        """Raise CannotSplit if the forward did not go the way that the plan describes."""
        if not self._left:
            raise CannotSplit(
                f"the forward did not pass the modules of the plan {self._plan.family}."
            )

    # At the borders of modules.

    def begin(self, part: Part, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Arguments that change at the entry of a module."""
        for name, reason in part.refuses.items():
            if arguments.get(name) is not None:
                raise CannotSplit(f"{self._plan.family} with {name}: {reason}")
        yield from self._entering(part, arguments)
        for name, follows in part.local.items():
            if arguments.get(name) is not None:
                yield name, self._localise(arguments[name], follows, name)
        if part.attends:
            self._attention.append(_Attention(part))

    def end(self, part: Part, out: Any) -> Any:
        """The outputs of a module, whole where the part's streams end."""
        if part.attends and not self._attention.pop().calls:
            raise CannotSplit(f"the attention of {part.path} cannot be intercepted.")
        for index, streams in part.leave.items():
            if isinstance(out, tuple):
                left = self._leave(out[index], streams, part.kept)
                out = (*out[:index], left, *out[index + 1 :])
            else:
                out = self._leave(out, streams, part.kept)
        return out

    def _entering(self, part: Part, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        found = dict(arguments)
        for name, streams in part.enter.items():
            argument, _, item = name.partition(".")
            if found.get(argument) is not None:
                enter = partial(self._enter, part=part, streams=streams, name=name)
                found[argument] = _with_item(found[argument], item, enter)
                yield argument, found[argument]

    def _enter(self, whole: Tensor, part: Part, streams: Streams, name: str) -> Tensor:
        grid = whole.shape[1 : 1 + part.token_dims]
        whole = whole.flatten(1, part.token_dims)
        known = self._joint([s for s in streams if s in self._streams], part.kept).length
        new = [stream for stream in streams if stream not in self._streams]
        if len(new) == 1 and whole.shape[1] >= known:
            self._open(new[0], whole.shape[1] - known)
            self._grids[new[0]] = grid
        elif new or whole.shape[1] != known:
            raise CannotSplit(
                f"{self._plan.family}: {name} has {whole.shape[1]} tokens for "
                f"{' and '.join(streams)}, of which {known} are known."
            )
        shard = self._joint(streams, part.kept).shard(whole, 1, self._mesh.index)
        for dim in range(2, 1 + part.token_dims):
            shard = shard.unsqueeze(dim)
        # A copy: blocks work in place, and others may hold the whole tensor.
        return shard.clone()

    def _open(self, name: str, length: int) -> None:
        stream = self._streams[name] = split_stream(length, self._mesh.weights)
        start, size = stream.start(self._mesh.index), stream.sizes[self._mesh.index]
        for rule, whole_at, entries in self._residuals:
            if rule.of == name:
                entries[:] = [
                    entry if i == whole_at else _rows(entry, start, size)
                    for i, entry in enumerate(entries)
                ]

    def _leave(self, shard: Tensor, streams: Streams, kept: Streams) -> Tensor:
        self._left = True
        whole = self._whole(shard, self._joint(streams, kept))
        grid = self._grids[streams[0]]
        if len(grid) == 1:
            return whole
        return whole.reshape(len(whole), *grid, *whole.shape[1 + len(grid) :])

    def _whole(self, shard: Tensor, joint: Joint) -> Tensor:
        """(batch, all tokens, ...) from each rank's (batch, tokens, ...)."""
        group, here = self._mesh.sequence, self._mesh.index
        batch, _, *rest = shard.shape
        split = joint.split()
        shapes = [(batch, split.local(rank), *rest) for rank in range(len(group))]
        moving = joint.travelling(shard, 1, here).reshape(-1)
        parts = group.all_gather(moving, [math.prod(shape) for shape in shapes])
        travelled = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return joint.join(travelled, shard, 1, here)

    # Arguments that follow a stream.

    def _localise(self, whole: Any, follows: Follows, name: str) -> Any:
        key = (id(whole), follows)
        if key not in self._known:
            self._known[key] = (whole, self._find_local(whole, follows, name))
        return self._known[key][1]

    def _find_local(self, whole: Any, follows: Follows, name: str) -> Any:
        match follows:
            case Tokens(of=streams, in_tuple=dim) if isinstance(whole, tuple):
                return tuple(
                    self._tokens(item, dim, streams, name) if isinstance(item, Tensor) else item
                    for item in whole
                )
            case Tokens(dim=dim, of=streams):
                return self._tokens(whole, dim, streams, name)
            case Frames(dim=dim, of=stream, ndim=ndim):
                whole = whole if isinstance(whole, Tensor) else whole.data
                return self._frames(whole, dim, stream) if whole.ndim == ndim else whole
            case Ranges(of=streams, behind=before):
                return self._ranges(whole, streams, before)
            case Position(of=stream):
                return self._position(whole, stream)

    def _tokens(self, whole: Tensor, dim: int, streams: Streams, name: str) -> Tensor:
        joint = self._joint(streams)
        if whole.shape[dim] == 1 and joint.length != 1:
            return whole
        if whole.shape[dim] != joint.length:
            raise CannotSplit(
                f"{self._plan.family}: {name} has {whole.shape[dim]} entries for {joint.length} "
                f"tokens."
            )
        return joint.shard(whole, dim, self._mesh.index)

    def _frames(self, whole: Tensor, dim: int, name: str) -> Tensor:
        stream, num_frames = self._streams[name], whole.shape[dim]
        if num_frames == 1:
            return whole
        per_frame = -(-stream.length // num_frames)
        start, size = stream.start(self._mesh.index), stream.sizes[self._mesh.index]
        tokens = torch.arange(start, start + size, device=whole.device)
        return whole.index_select(dim, tokens // per_frame)

    def _ranges(self, ranges: Any, streams: Streams, before: str) -> list[tuple[Any, ...]]:
        joint, found, offset = self._joint(streams), [], 0
        moved = self._streams[before].elsewhere(self._mesh.index) if before else 0
        for start, size in joint.segments(self._mesh.index):
            for first, end, *what in ranges:
                low = max(first + moved if first else 0, start)
                high = min(joint.length if end is None else end + moved, start + size)
                if low < high:
                    found.append((offset + low - start, offset + high - start, *what))
            offset += size
        return found

    def _position(self, whole: int, name: str) -> int:
        stream = self._streams[name]
        start, size = stream.start(self._mesh.index), stream.sizes[self._mesh.index]
        return min(max(whole - start, 0), size)

    # Attention.

    def _attend(
        self, previous: Any, kernel: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        if previous is not None:
            kernel = partial(previous, kernel)
        streams = self._attention[-1].next() if self._attention else ()
        if not streams:
            return kernel(*args, **kwargs)
        if previous is not None and self._mesh.dims.ring > 1:
            raise CannotSplit("a node replaced the attention; a ring needs its log-sum-exp.")
        request, joint = Request.of(*args, **kwargs), self._joint(streams)
        part = self._attention[-1].part
        keys = self._joint(part.keys or streams)
        if part.own_mask and request.mask is not None:
            request = replace(request, mask=self._whole_mask(request.mask, keys, part.path))
        return sequence_attention(self._mesh, joint, keys, kernel, request)

    def _whole_mask(self, mask: Tensor, joint: Joint, path: str) -> Tensor:
        """A mask (batch, heads, 1, all keys) from each rank's for its own keys."""
        if mask.shape[2] != 1 or mask.shape[3] != joint.local(self._mesh.index):
            raise CannotSplit(
                f"{self._plan.family}: the mask of {path} has shape {tuple(mask.shape)}; one for "
                f"the keys of this rank, alike for all queries, is expected."
            )
        return self._whole(mask.movedim(3, 1), joint).movedim(1, 3)

    def _joint(self, streams: Sequence[str], kept: Streams = ()) -> Joint:
        """The layout of streams behind one another, those that are ``kept`` as seen from here."""
        if missing := [name for name in streams if name not in self._streams]:
            raise CannotSplit(f"{self._plan.family}: the forward passed over {missing}.")
        return Joint(
            tuple(
                self._streams[name].kept(self._mesh.index) if name in kept else self._streams[name]
                for name in streams
            )
        )


def _with_item(value: Any, item: str, change: Callable[[Any], Any]) -> Any:
    """The value changed, or where it is a tuple, with that item of it changed."""
    if not item:
        return change(value)
    place = int(item)
    return (*value[:place], change(value[place]), *value[place + 1 :])


def _rows(entry: Tensor | None, start: int, size: int) -> Tensor | None:
    """The residuals of some tokens. They may end before the stream does, as a prefix."""
    if entry is None:
        return None
    if entry.ndim != 3:
        raise CannotSplit(f"control residuals of shape {tuple(entry.shape)}; tokens are expected.")
    return entry[:, start : start + size]
