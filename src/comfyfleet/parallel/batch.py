"""One forward, its batch split over several workers, and their outputs joined.

ComfyUI runs k conditionings of n samples as one batch of k*n: chunk after chunk, each of n, with
one entry per chunk in ``cond_or_uncond``. Models and patches chunk the batch by the length of that
list, so a part takes the same samples of every chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.tree import Path, spell
from comfyfleet.split import largest_remainder

# Tensors are batch first unless their name is here: ComfyUI repeats each conditioning to n samples
# and concatenates k of them (comfy/conds.py), whatever the model; controls are batch first or 1.

#: Names of tensors that belong to the run, even if their length happens to be that of the batch.
WHOLE: dict[object, str] = {
    "sample_sigmas": "the schedule of the run, of steps + 1 values",
}

#: Names of tensors that may be of n samples where the batch is k*n.
PER_SAMPLE: dict[object, str] = {
    "sigmas": "the step's sigma for each sample, once for all conditionings",
}

#: Names that tell, if not None, that the samples of a batch depend on each other.
TOGETHER: dict[object, str] = {
    "num_video_frames": "in Stable Video Diffusion a batch is the frames of one video",
    "ad_params": "in AnimateDiff a batch is the frames of one video",
}


class Unsplittable(CannotSplit):
    """A forward whose batch cannot be split exactly; the message names the argument."""


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """The parts of one forward; None is the part of a worker that gets no samples."""

    calls: list[Call | None]
    chunks: int
    sizes: list[int]

    def join(self, outputs: Sequence[Tensor | None]) -> Tensor:
        """Return the parts' outputs, all on one device, in the order of the whole batch.

        An output is batch first, of as many rows as its part; that of an empty part is None.
        Raises ValueError if one is missing or has another number of rows.
        """
        rows = [None if output is None else output.shape[0] for output in outputs]
        wanted = [self.chunks * size or None for size in self.sizes]
        if rows != wanted:
            raise ValueError(f"outputs have {rows} rows; the parts of this batch have {wanted}")
        parts = [(o, size) for o, size in zip(outputs, self.sizes, strict=True) if o is not None]
        if len(parts) == 1:
            return parts[0][0]
        return torch.cat([o.narrow(0, c * n, n) for c in range(self.chunks) for o, n in parts])


def split_batch(call: Call, weights: Sequence[float]) -> BatchSplit:
    """Split a forward along its batch into one part per weight.

    The batch is the first dim of ``args[0]``; part r gets its share of the n samples of each of k
    chunks, in order. Tensors of the batch are cut (views where k is 1), those with a first dim of
    1 or none are shared, containers are new ones, all other values are the same objects.

    Raises Unsplittable if a tensor's first dim is neither, or if the samples depend on each other,
    unless one part gets everything; ValueError if the weights are no weights.
    """
    batch, chunks = _batch(call), _chunks(call)
    if batch % chunks:
        raise Unsplittable(
            f"args[0] has a batch of {batch}, but cond_or_uncond has {chunks} entries; "
            f"the batch must be a multiple of {chunks}"
        )
    samples = batch // chunks
    sizes = largest_remainder(samples, weights)
    starts = accumulate(sizes[:-1], initial=0)
    parts = [_Part(chunks, samples, *part) for part in zip(starts, sizes, strict=True)]
    return BatchSplit([part.of(call) if part.size else None for part in parts], chunks, sizes)


def _batch(call: Call) -> int:
    x = call.args[0] if call.args else None
    if isinstance(x, Tensor) and x.dim() and x.shape[0]:
        return int(x.shape[0])
    given = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise Unsplittable(
        f"args[0] is {given}; a batch can be split only where it is one tensor, batch first"
    )


def _chunks(call: Call) -> int:
    """Return k; some models take transformer_options by position, so it is looked for."""
    for options in (call.kwargs.get("transformer_options"), *call.args):
        if isinstance(options, Mapping) and options.get("cond_or_uncond"):
            return len(options["cond_or_uncond"])
    return 1


@dataclass(slots=True)
class _Part:
    """Samples start to start + size of each chunk."""

    chunks: int
    samples: int
    start: int
    size: int
    # By identity, so that a tensor in several places (controls repeat theirs) stays one tensor.
    cut: dict[int, Tensor] = field(default_factory=dict)

    def of(self, call: Call) -> Call:
        args = tuple(self._take(arg, ("args", i)) for i, arg in enumerate(call.args))
        return Call(args, {k: self._take(v, ("kwargs", k)) for k, v in call.kwargs.items()})

    @property
    def whole(self) -> bool:
        return self.size == self.samples

    def _take(self, value: Any, path: Path) -> Any:
        reason = TOGETHER.get(path[-1])
        if reason and value is not None and not self.whole:
            raise Unsplittable(f"{spell(path)} is given: {reason}, so it must be computed whole")
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        # Always new containers: models write into transformer_options and pop from control.
        if isinstance(value, dict):
            taken = copy.copy(value)
            taken.update({key: self._take(item, (*path, key)) for key, item in value.items()})
            return taken
        if isinstance(value, (list, tuple)):
            items = [self._take(item, (*path, i)) for i, item in enumerate(value)]
            return getattr(value, "_make", type(value))(items)  # a named tuple, or any other
        return value

    def _tensor(self, tensor: Tensor, path: Path) -> Tensor:
        length = tensor.shape[0] if tensor.dim() else 1
        if self.whole or length == 1 or path[-1] in WHOLE:
            return tensor
        if length == self.chunks * self.samples:
            return self._rows(tensor, self.chunks)
        if length == self.samples and path[-1] in PER_SAMPLE:
            return self._rows(tensor, 1)
        raise Unsplittable(
            f"{spell(path)} has shape {tuple(tensor.shape)}; of a batch of "
            f"{self.chunks * self.samples} its first dim must be that or 1"
        )

    def _rows(self, tensor: Tensor, chunks: int) -> Tensor:
        if id(tensor) not in self.cut:
            starts = range(self.start, chunks * self.samples, self.samples)
            rows = [tensor.narrow(0, start, self.size) for start in starts]
            self.cut[id(tensor)] = rows[0] if chunks == 1 else torch.cat(rows)
        return self.cut[id(tensor)]
