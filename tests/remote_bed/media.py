"""Input files of each kind that ComfyUI's own loaders read, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

RATE = 16_000


def write_picture(path: Path, color: tuple[int, int, int]) -> None:
    Image.new("RGB", (24, 16), color).save(path)


def write_video(path: Path, levels: Sequence[int]) -> None:
    """One grey frame for each level."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            shown = np.full((48, 64, 3), level, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        file.mux(stream.encode())


def tone(seconds: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    times = np.arange(int(RATE * seconds)) / RATE
    return (np.sin(2 * np.pi * 440 * times) * 20_000).astype(np.int16)


def write_sound(path: Path, samples: np.ndarray[Any, np.dtype[np.int16]]) -> None:
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


def read_sound(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The samples of one channel, of -1 to 1."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
    samples = np.concatenate(frames, axis=-1)[0]
    whole = {"int16": 1 << 15, "int32": 1 << 31}.get(str(samples.dtype), 1)
    return np.asarray(samples, np.float32) / np.float32(whole)


def write_latent(path: Path, samples: torch.Tensor) -> None:
    save_file({"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}, path)
