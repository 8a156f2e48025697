"""The form of what a worker elsewhere returned, looked at before it is joined with others' shares.

That dtypes are known and buffers have the bytes of their shapes, ``codec`` has seen to.
"""

from __future__ import annotations

from typing import Any

from comfyfleet.errors import InputError
from comfyfleet.work import Packed, TensorRef

#: Of pictures [batch, height, width, channels] and of waveforms [batch, channels, time].
_IMAGE_DIMS, _WAVEFORM_DIMS = 4, 3


def require_forms(found: Packed, url: str) -> None:
    """Raises InputError, which another worker's answer mends, for pictures or sound that is none.

    Of other values nobody can say what they should look like.
    """
    for image in found.skeleton.get("images", ()):
        if not _is_tensor(image, _IMAGE_DIMS) or not all(image.shape[1:]):
            raise InputError(
                f"{url} returned images of the form {_form(image)}; images are batches of "
                "[height, width, channels]. Look at that machine and its packs."
            )
    for sound in found.skeleton.get("audio", ()):
        if not _is_sound(sound):
            raise InputError(
                f"{url} returned audio that is none ({_form(sound)}); audio is a waveform "
                "[batch, channels, time] and its sample_rate. Look at that machine and its packs."
            )


def _is_tensor(value: Any, dims: int) -> bool:
    return isinstance(value, TensorRef) and len(value.shape) == dims


def _is_sound(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_tensor(value.get("waveform"), _WAVEFORM_DIMS):
        return False
    rate = value.get("sample_rate")
    return type(rate) is int and rate > 0


def _form(value: Any) -> str:
    if isinstance(value, TensorRef):
        return f"{list(value.shape)} {value.dtype}"
    if isinstance(value, dict):
        return ", ".join(f"{str(key)[:30]}: {_form(item)}" for key, item in list(value.items())[:5])
    return type(value).__name__
