"""A convolutional network's forward, split over the rows of its feature maps, exactly.

The modules are ComfyUI's own. Those that look beyond their row get another ``forward`` for the time
of one forward of the whole. A module that is not known here is refused: it may mix rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from comfyfleet.errors import CannotSplit
from comfyfleet.parallel.call import Call
from comfyfleet.parallel.mesh import SequenceMesh
from comfyfleet.parallel.strips import Strips, Window
from comfyfleet.split import largest_remainder

#: A norm, and feature maps that it normalizes -> its weight and its bias, as fits these.
WeightsOf: TypeAlias = Callable[[nn.Module, Tensor], tuple[Tensor | None, Tensor | None]]

_MODEL = "comfy.ldm.modules.diffusionmodules.model"
_AUTOENCODER = "comfy.ldm.models.autoencoder"
_TAESD = "comfy.taesd.taesd"
_TORCH = "torch.nn.modules"
_DOWNSAMPLE, _ATTENTION = f"{_MODEL}.Downsample", f"{_MODEL}.AttnBlock"
#: Where convolutions and norms come from whose forward is torch's, but for the weights' place.
_PLAIN = (f"{_TORCH}.conv", f"{_TORCH}.normalization", "comfy.ops")


def _always(module: Any) -> bool:
    return True


def _repeats(module: Any) -> bool:
    """Is a row repeated a whole number of times?"""
    factor = module.scale_factor
    return isinstance(factor, int | float) and factor >= 1 and factor == int(factor)


#: Classes whose own forward looks at no other row, or is seen to here -> is it so for this one?
_KNOWN: Mapping[str, Callable[[Any], bool]] = {
    f"{_TORCH}.module.Module": _always,
    f"{_TORCH}.container.Sequential": _always,
    f"{_TORCH}.container.ModuleList": _always,
    f"{_TORCH}.linear.Identity": _always,
    f"{_TORCH}.activation.ReLU": _always,
    f"{_TORCH}.activation.SiLU": _always,
    f"{_TORCH}.dropout.Dropout": lambda module: module.p == 0 or not module.training,
    f"{_TORCH}.batchnorm.BatchNorm2d": lambda module: not module.training,
    f"{_TORCH}.upsampling.Upsample": lambda module: (
        module.mode == "nearest" and module.size is None and _repeats(module)
    ),
    f"{_MODEL}.Encoder": _always,
    f"{_MODEL}.Decoder": _always,
    f"{_MODEL}.ResnetBlock": _always,
    f"{_MODEL}.Upsample": _repeats,
    _DOWNSAMPLE: lambda module: module.with_conv,
    _ATTENTION: _always,
    f"{_AUTOENCODER}.AutoencoderKL": _always,
    f"{_AUTOENCODER}.AutoencodingEngine": _always,
    f"{_AUTOENCODER}.DiagonalGaussianRegularizer": lambda module: not module.sample,
    f"{_AUTOENCODER}.EmptyRegularizer": _always,
    f"{_TAESD}.TAESD": _always,
    f"{_TAESD}.Encoder": _always,
    f"{_TAESD}.Decoder": _always,
    f"{_TAESD}.Block": _always,
    f"{_TAESD}.Clamp": _always,
}


def rows_forward(
    mesh: SequenceMesh,
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    call: Call,
    weights_of: WeightsOf = lambda norm, x: (norm.weight, norm.bias),
) -> Tensor:
    """``forward(x)`` of the model, its rows split over the mesh; the first rank gets the whole.

    ``call.args`` is x, [batch, channels, rows, columns], and how many of its rows belong together:
    as many as become one row of the result, else 1. All ranks must call it with equal arguments.
    Raises CannotSplit, on all ranks alike; LinkLost.
    """
    check_rows(model)
    x, unit = call.args
    if x.ndim != 4:
        raise CannotSplit(f"the VAE's input has {x.ndim} dimensions; rows are those of pictures.")
    rows = share_rows(x.shape[2], unit, mesh.weights)
    active = [index for index, count in enumerate(rows) if count]
    if mesh.index not in active:
        return x[:, :, :0]
    if len(active) == 1:
        return forward(x)
    group = mesh.world.group([mesh.ranks[index] for index in active])
    strips = Strips(group, [0, *accumulate(rows[index] for index in active)])
    with _replaced(_changes(model, strips, weights_of)):
        return strips.collected(forward(x[:, :, strips.own.start : strips.own.stop]))


def share_rows(height: int, unit: int, weights: Sequence[float]) -> list[int]:
    """How many rows each rank gets: whole units by weight, and the last of them what is left.

    The first rank always gets some: it is the one that needs the result. Others may get none.
    """
    units = largest_remainder(max(1, height // unit), weights)
    if not units[0]:
        units[units.index(max(units))] -= 1
        units[0] = 1
    rows = [count * unit for count in units]
    last = max(index for index, count in enumerate(rows) if count)
    rows[last] += height - sum(rows)
    return rows


def check_rows(model: nn.Module) -> None:
    """Raise CannotSplit for a model of which not all modules are known."""
    for path, module in model.named_modules():
        if reason := _why_not(module):
            name = type(module).__qualname__
            where = f"{path} ({name})" if path else name
            raise CannotSplit(f"the rows of this VAE are not split: {where} {reason}.")


def _why_not(module: nn.Module) -> str:
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return "was changed by a node, which must see whole pictures"
    kind = type(module)
    is_plain = kind.__module__ in _PLAIN
    if is_plain and isinstance(module, nn.Conv2d):
        return _why_not_conv(module)
    if is_plain and isinstance(module, nn.GroupNorm):
        return ""
    is_exact = _KNOWN.get(_name(module), lambda module: False)
    return "" if is_exact(module) else "is not known to look only at neighbouring rows"


def _why_not_conv(conv: nn.Conv2d) -> str:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return "pads with something else than so many rows of zeros"
    window = _window(conv)
    return "pads with more rows of zeros than it reads" if window.padding >= window.rows else ""


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


#: A module, the name of an attribute, and its value for one forward.
_Change: TypeAlias = tuple[nn.Module, str, Any]


def _changes(model: nn.Module, strips: Strips, weights_of: WeightsOf) -> Iterator[_Change]:
    """What is another for a strip than for a whole picture."""
    # ComfyUI's Downsample adds a row of zeros below its input, before its convolution.
    below = {id(m.conv): 1 for m in model.modules() if _name(m) == _DOWNSAMPLE}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            window = _window(module)
            if not window.is_local:
                added = below.get(id(module), 0)
                forward = partial(strips.convolved, module.forward, window, below=added)
                yield module, "forward", forward
        elif isinstance(module, nn.GroupNorm):
            yield module, "forward", partial(_norm, strips, weights_of, module)
        elif _name(module) == _ATTENTION:
            attention = partial(strips.attended, module.optimized_attention)
            yield module, "optimized_attention", attention


def _window(conv: nn.Conv2d) -> Window:
    rows = 1 + conv.dilation[0] * (conv.kernel_size[0] - 1)
    return Window(rows=rows, stride=conv.stride[0], padding=int(conv.padding[0]))


def _norm(strips: Strips, weights_of: WeightsOf, norm: nn.GroupNorm, x: Tensor) -> Tensor:
    out = strips.normalized(x, norm.num_groups, norm.eps)
    weight, bias = (
        None if each is None else each.to(out).view(1, -1, 1, 1) for each in weights_of(norm, x)
    )
    if weight is not None:
        out = out.mul_(weight) if bias is None else torch.addcmul(bias, out, weight)
    return out.to(x.dtype)


@contextmanager
def _replaced(changes: Iterator[_Change]) -> Iterator[None]:
    """Attributes with other values for a while, whatever happens."""
    before: list[tuple[nn.Module, str, bool, Any]] = []
    try:
        for module, name, value in list(changes):
            own = name in vars(module)
            before.append((module, name, own, getattr(module, name)))
            setattr(module, name, value)
        yield
    finally:
        for module, name, own, value in before:
            if own:
                setattr(module, name, value)
            else:
                delattr(module, name)
