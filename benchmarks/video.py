"""Does a longer video need more memory? 300 frames of 1280x720, doubled, against 30 of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

from benchmarks.server import comfyui_server

FRAMES = (30, 300)


def run() -> dict[str, Any]:
    """The most memory that ComfyUI and its worker have held, on a server of its own for each."""
    peaks = {count: _peak_mb(count) for count in FRAMES}
    few, many = FRAMES
    raw = many * 2560 * 1440 * 3 * 4 / 1e6
    return {
        **{f"peak_mb_{count}_frames": round(peak) for count, peak in peaks.items()},
        "megabytes_of_all_frames": round(raw),
        "peak_ratio": round(peaks[many] / peaks[few], 3),
    }


def _peak_mb(count: int) -> float:
    with comfyui_server(workers="cpu") as server:
        folder = server.folder / "input"
        folder.mkdir(exist_ok=True)
        _film(folder / "film.mp4", count)
        upscale = {"upscale_model": ["1", 0], "video": ["2", 0], "tile": 512}
        saved = {"video": ["3", 0], "filename_prefix": "film", "format": "auto", "codec": "auto"}
        server.run(
            {
                "1": {"class_type": "BenchUpscaler", "inputs": {}},
                "2": {"class_type": "LoadVideo", "inputs": {"file": "film.mp4"}},
                "3": {"class_type": "FleetModelUpscaleVideo", "inputs": upscale},
                "4": {"class_type": "SaveVideo", "inputs": saved},
            }
        )
        (made,) = (server.folder / "output").rglob("*.mp4")
        with av.open(str(made)) as file:
            assert sum(1 for _ in file.decode(video=0)) == count
        return sum(map(_peak_of, server.processes())) / 1e6


def _peak_of(process: psutil.Process) -> float:
    """Bytes of the most resident memory that a process has had; Linux."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    return 0.0


def _film(path: Path, count: int) -> None:
    """Moving colours."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        ramp = np.arange(1280, dtype=np.uint16)[None, :] + np.arange(720, dtype=np.uint16)[:, None]
        for number in range(count):
            colors = [(ramp * (1 + color) + 5 * number) % 256 for color in range(3)]
            pixels = np.stack(colors, axis=-1).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
