"""Videos upscaled frame by frame: read, spread and written as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import comfy.utils
import torch

from comfyfleet.comfy.tiles import Sampling, is_video, resized
from comfyfleet.comfy.videos import Frame, Reader, Writer
from comfyfleet.extension.spread.elsewhere import Elsewhere
from comfyfleet.extension.spread.sheets import DriverSheet, RedrawSheet, Sheet
from comfyfleet.extension.spread.upscaling import (
    ModelUpscale,
    Progress,
    Redraw,
    run_model,
    run_redraw,
    stream,
)


class _Reel:
    """Frames whose sheets are on their way, and the file that they go to in order."""

    def __init__(self, reader: Reader, width: int, height: int) -> None:
        self._writer = Writer(reader, width, height)
        self._waiting: deque[list[Frame]] = deque()
        #: The last frame that was written.
        self.newest: torch.Tensor | None = None

    def wait(self, frames: list[Frame]) -> None:
        """These frames have a sheet now."""
        self._waiting.append(frames)

    def write(self, pixels_BHWC: torch.Tensor) -> None:
        """What came of the frames that have waited longest."""
        for frame, pixels in zip(self._waiting.popleft(), pixels_BHWC, strict=True):
            self._writer.write(frame, pixels)
            self.newest = pixels

    def run(self, work: Callable[[], None]) -> Any:
        """Do the work that writes all frames; the VIDEO. Nothing is left of it if it fails."""
        try:
            work()
            return self._writer.close()
        except BaseException:
            self._writer.abandon()
            raise


def redraw_video(
    elsewhere: Elsewhere,
    node_id: str,
    reader: Reader,
    size: tuple[int, int],
    how: Redraw,
    sampling: Sampling,
    segment: int,
) -> Any:
    """A VIDEO of this size, redrawn by tiles.

    A model of pictures gets each frame alone, with equal noise; one of videos ``segment`` frames.
    """
    reel = _Reel(reader, *size)
    together = segment if is_video(sampling.vae) else 1

    def sheets() -> Iterator[Sheet]:
        frames, first = reader.frames(), 0
        while found := list(islice(frames, together)):
            reel.wait(found)
            pixels = torch.stack([frame.pixels_HWC for frame in found])
            yield RedrawSheet(
                canvas=how.canvas(resized(pixels, *size).float().clone()),
                original=(reader.width, reader.height),
                first=first,
                count=len(found),
                total=reader.count,
                denoise=how.denoise,
                seam_denoise=how.seam_denoise,
                noise_from=None if is_video(sampling.vae) else 0,
            )
            first += len(found)

    def finish(sheet: Any) -> None:
        reel.write(sheet.canvas.pixels)

    num_groups = how.num_groups(*size)
    progress = Progress(node_id, -(-reader.count // together) * num_groups, "tiles")
    tiles = stream(sheets(), finish, how.static, elsewhere)

    def tell(counts: Mapping[str, int]) -> None:
        progress.tell(tiles.num_taken, counts, lambda: reel.newest)

    return reel.run(lambda: run_redraw(elsewhere, tiles, sampling, tell))


def upscale_video_by_model(
    elsewhere: Elsewhere,
    node_id: str,
    reader: Reader,
    size: tuple[int, int],
    how: ModelUpscale,
) -> Any:
    """A VIDEO of this size, upscaled by a model."""
    reel = _Reel(reader, *size)

    def sheets() -> Iterator[Sheet]:
        for frame in reader.frames():
            reel.wait([frame])
            yield how.sheet(frame.pixels_HWC[None])

    def finish(sheet: Any) -> None:
        assert isinstance(sheet, DriverSheet)
        reel.write(resized(sheet.joined().movedim(1, -1).clamp(0.0, 1.0), *size))

    per_frame = comfy.utils.get_tiled_scale_steps(
        reader.width, reader.height, how.tile, how.tile, how.overlap
    )
    progress = Progress(node_id, reader.count * per_frame, "tiles upscaled")
    tiles = stream(sheets(), finish, how.static, elsewhere)

    def tell(counts: Mapping[str, int]) -> None:
        progress.tell(tiles.num_taken, counts, lambda: reel.newest)

    return reel.run(lambda: run_model(elsewhere, tiles, how.upscale_model, tell))
