"""One decode or encode of a VAE, its rows computed by a gang; ComfyUI's own function around it.

ComfyUI loads the model, cuts batches by memory, and turns pixels into what the model takes. Only
the model's own method is another one meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import comfy.ops
from torch import Tensor, nn

from comfyfleet.comfy.sampling import Gang
from comfyfleet.errors import CannotSplit, LinkLost
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.dims import ParallelDims
from comfyfleet.parallel.gang import Leader, Split, Way
from comfyfleet.parallel.rows import check_rows, rows_forward

#: What a VAE is asked for: its own method of this name, and that of its model.
Method: TypeAlias = Literal["decode", "encode"]


def _weights_of(norm: nn.Module, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """As ComfyUI's own norm gets them: they may wait on another device."""
    if norm.weight is None:
        return None, None
    weight, bias = comfy.ops.cast_bias_weight(norm, x)
    return weight, bias


#: Leader and followers of a VAE compute so.
BY_ROWS = Way(check_rows, partial(rows_forward, weights_of=_weights_of))


def check_exact(vae: Any, method: Method) -> None:
    """Raise CannotSplit for a VAE whose rows cannot be computed apart."""
    model = getattr(vae, "first_stage_model", None)
    if model is None:
        raise CannotSplit("this VAE has no model of ComfyUI's.")
    if method in vars(model):
        raise CannotSplit(f"a node has replaced {method} of this VAE's model.")
    check_rows(model)


class ExactVAE:
    """A VAE that all ranks of a gang compute, once. Whatever goes wrong, one device repeats it."""

    def __init__(self, vae: Any, gang: Gang, tell: Callable[[str, int], None]) -> None:
        """``tell``: what the user should know, and of which level that is in a log."""
        self._vae = vae
        self._gang = gang
        self._tell = tell
        self._leader: Leader | None = None
        self._begun = False
        #: Did one device compute some of it?
        self._alone = False

    def run(self, method: Method, value: Tensor) -> Tensor:
        """``vae.decode(value)`` or ``vae.encode(value)``."""
        model = self._vae.first_stage_model
        setattr(model, method, partial(self._forward, getattr(model, method)))
        try:
            found: Tensor = getattr(self._vae, method)(value)
        finally:
            delattr(model, method)
            self._leave()
            self._gang.close()
        if not self._alone:
            devices = ", ".join(self._gang.devices)
            self._tell(f"Exact {method}: rows on {devices}.", logging.INFO)
        return found

    def _forward(self, original: Callable[..., Tensor], x: Tensor, **options: Any) -> Tensor:
        """One forward of the model. ComfyUI asks for several if the batch is large."""
        self._begin()
        if options:
            self._go_alone(f"{', '.join(options)} cannot be shared.")
        if self._leader is not None:
            try:
                return self._shared(self._leader, original, x)
            except LinkLost as error:
                self._go_alone(f"{self._gang.explain(error)} It is repeated.")
            except CannotSplit as error:
                self._go_alone(str(error))
        self._alone = True
        return original(x, **options)

    def _shared(self, leader: Leader, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        weights, unit = self._gang.weights, 1
        if original.__name__ == "encode":
            unit = self._vae.spacial_compression_encode()
        split = Split(ParallelDims(ring=len(weights)), weights)
        try:
            return leader.forward(split, self._vae.first_stage_model, original, Call((x, unit), {}))
        except BaseException:
            self._leave()  # followers may be in the middle of it
            raise

    def _begin(self) -> None:
        """Wait for the followers at the first forward: until then they came beside us."""
        if self._begun:
            return
        self._begun = True
        world, note = self._gang.ready(), self._gang.note
        if world is None:
            self._go_alone(note or "no worker is free.")
            return
        if note:
            self._tell(note, logging.WARNING)
        try:
            self._leader = Leader(world, way=BY_ROWS)
        except LinkLost as error:
            world.close()
            self._go_alone(self._gang.explain(error))

    def _go_alone(self, reason: str) -> None:
        self._leave()
        self._tell(f"One device computes: {reason}", logging.WARNING)

    def _leave(self) -> None:
        """Go on without followers."""
        if self._leader is not None:
            self._leader.close()
        self._leader = None
