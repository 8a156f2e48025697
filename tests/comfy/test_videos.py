"""Videos frame by frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

pytestmark = pytest.mark.comfy

#: Where the matrix lies behind a track header's name, and one that turns by 90 degrees.
_MATRIX = slice(40, 76)
_TURNED = b"".join(
    number.to_bytes(4, "big", signed=True)
    for number in (0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
)


def film(path: Path) -> None:
    """Frames whose left half is white, lying: a player turns them with the clock."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:, :32] = 255
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    data[header + _MATRIX.start : header + _MATRIX.stop] = _TURNED
    path.write_bytes(data)


def test_a_video_that_lies_is_read_as_it_is_shown(values: ModuleType, tmp_path: Path) -> None:
    from comfy_api.latest import InputImpl

    from comfyfleet.comfy.videos import Reader

    film(tmp_path / "film.mp4")
    reader = Reader(InputImpl.VideoFromFile(str(tmp_path / "film.mp4")))
    frames = [frame.pixels_HWC for frame in reader.frames()]
    assert (reader.width, reader.height, len(frames)) == (32, 64, 3)
    for pixels_HWC in frames:
        assert pixels_HWC.shape == (64, 32, 3)
        assert pixels_HWC[:30].min() > 0.9 and pixels_HWC[34:].max() < 0.1


def test_equal_frames_are_equal_files(
    values: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    import torch
    from comfy_api.latest import InputImpl, Types

    from comfyfleet.comfy.videos import Reader, Writer

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    time, row, column, color = torch.meshgrid(*map(torch.arange, (6, 128, 192, 3)), indexing="ij")
    stripes = (3 * row + column * (color + 1) + 7 * time) % 256 // 2
    noise = torch.randint(0, 20, stripes.shape, generator=torch.Generator().manual_seed(0))
    images = (stripes + noise) / 255
    components = Types.VideoComponents(images=images, audio=None, frame_rate=Fraction(10))

    def written() -> bytes:
        reader = Reader(InputImpl.VideoFromComponents(components))
        writer = Writer(reader, 192, 128)
        for frame in reader.frames():
            writer.write(frame, frame.pixels_HWC)
        writer.close()
        return writer.path.read_bytes()

    assert len({written() for _ in range(40)}) == 1
