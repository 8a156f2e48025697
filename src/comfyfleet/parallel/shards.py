"""One forward's split: which streams there are, what follows them, and where attention is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
                raise CannotSplit(f"{self._plan.family}: control residuals of kind {name!r}.")
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
        for name, streams in part.enter.items():
            if arguments.get(name) is not None:
                yield name, self._enter(arguments[name], streams, name)
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
                out = (*out[:index], self._leave(out[index], streams), *out[index + 1 :])
            else:
                out = self._leave(out, streams)
        return out

    def _enter(self, whole: Tensor, streams: Streams, name: str) -> Tensor:
        known = sum(self._streams[s].length for s in streams if s in self._streams)
        new = [stream for stream in streams if stream not in self._streams]
        if len(new) == 1:
            self._open(new[0], whole.shape[1] - known)
        elif new or whole.shape[1] != known:
            raise CannotSplit(f"{self._plan.family}: {name} has {whole.shape[1]} tokens.")
        # A copy: blocks work in place, and others may hold the whole tensor.
        return self._joint(streams).shard(whole, 1, self._mesh.index).clone()

    def _open(self, name: str, length: int) -> None:
        stream = self._streams[name] = split_stream(length, self._mesh.weights)
        start, size = stream.start(self._mesh.index), stream.sizes[self._mesh.index]
        for rule, whole_at, entries in self._residuals:
            if rule.of == name:
                entries[:] = [
                    entry if i == whole_at else _rows(entry, start, size)
                    for i, entry in enumerate(entries)
                ]

    def _leave(self, shard: Tensor, streams: Streams) -> Tensor:
        self._left = True
        joint, group, here = self._joint(streams), self._mesh.sequence, self._mesh.index
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
            case Tokens(dim=dim, of=streams):
                return self._tokens(whole, dim, streams, name)
            case Frames(dim=dim, of=stream, ndim=ndim):
                return self._frames(whole, dim, stream) if whole.ndim == ndim else whole
            case Ranges(of=streams):
                return self._ranges(whole, streams)

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

    def _ranges(self, ranges: Any, streams: Streams) -> list[tuple[int, int, Any]]:
        joint, found, offset = self._joint(streams), [], 0
        for start, size in joint.segments(self._mesh.index):
            for first, end, what in ranges:
                low = max(first, start)
                high = min(joint.length if end is None else end, start + size)
                if low < high:
                    found.append((offset + low - start, offset + high - start, what))
            offset += size
        return found

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
        request = Request.of(*args, **kwargs)
        return sequence_attention(self._mesh, self._joint(streams), kernel, request)

    def _joint(self, streams: Streams) -> Joint:
        return Joint(tuple(self._streams[name] for name in streams))


def _rows(entry: Tensor | None, start: int, size: int) -> Tensor | None:
    """The residuals of some tokens. They may end before the stream does, as a prefix."""
    if entry is None:
        return None
    if entry.ndim != 3:
        raise CannotSplit(f"control residuals of shape {tuple(entry.shape)}; tokens are expected.")
    low, high = min(start, entry.shape[1]), min(start + size, entry.shape[1])
    return entry[:, low:high]
