"""Videos frame by frame: read and written as a stream, so that none has to fit in memory."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import folder_paths
import numpy as np
import torch
from comfy_api.latest import InputImpl

from comfyfleet.errors import InputError

#: Sound that an MP4 file can hold as it is; other sound becomes AAC.
_KEPT_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "mp3", "opus"})
#: Visually lossless for x264: the file is an intermediate result. Its macroblock tree gives other
#: bytes each time when it uses several threads; without it equal frames are equal files.
_ENCODING = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame, [height, width, 3] from 0 to 1, and when it is shown."""

    pixels_HWC: torch.Tensor
    pts: int
    time_base: Fraction


class Reader:
    """A VIDEO of ComfyUI, frame by frame. Raises InputError if it has none."""

    def __init__(self, video: Any) -> None:
        in_memory = isinstance(video, InputImpl.VideoFromComponents)
        self._components = video.get_components() if in_memory else None
        self._source = None if in_memory else _source_of(video)
        window = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
        self._begin, self._length = map(float, window)
        if self._components is not None:
            images = self._components.images
            self.count = int(images.shape[0])
            self.height, self.width = (int(side) for side in images.shape[1:3])
            self.rate = Fraction(self._components.frame_rate)
        else:
            self._look(video)
        if not (self.count and self.width and self.height):
            raise InputError("video has no frames; connect one that has.")

    def _look(self, video: Any) -> None:
        try:
            self.width, self.height = video.get_dimensions()
            self.rate = Fraction(video.get_frame_rate())
            #: As the file says; some say it wrongly.
            self.count = int(video.get_frame_count())
            if self._turns() % 2:
                self.width, self.height = self.height, self.width
        except (ValueError, OSError) as error:  # PyAV's errors are both
            raise InputError(f"video cannot be read: {error}") from None

    def _turns(self) -> int:
        """By how many quarters, against the clock, the first frame is turned to be shown."""
        with self.open() as container:
            return _turns(next(container.decode(video=0), None))

    def frames(self) -> Iterator[Frame]:
        """All frames in order."""
        if self._components is not None:
            for number, pixels in enumerate(self._components.images):
                yield Frame(pixels_HWC=pixels[..., :3], pts=number, time_base=1 / self.rate)
            return
        with self.open() as container:
            stream = container.streams.video[0]
            if self._begin:
                container.seek(int(self._begin / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None and frame.time < self._begin - 1e-6:
                    continue
                if self._length and frame.time >= self._begin + self._length - 1e-6:
                    return
                upright = np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame)).copy()
                pixels = torch.from_numpy(upright) / 255.0
                yield Frame(pixels_HWC=pixels, pts=frame.pts, time_base=frame.time_base)

    def open(self) -> Any:
        """The file, opened once more."""
        source = self._source
        if isinstance(source, io.BytesIO):
            source = io.BytesIO(source.getbuffer())
        return av.open(source, mode="r")

    @property
    def metadata(self) -> dict[str, str]:
        if self._components is not None:
            return {}
        with self.open() as container:
            return dict(container.metadata)

    @property
    def sound(self) -> Any:
        """The sound of a video in memory."""
        return None if self._components is None else self._components.audio

    @property
    def has_file(self) -> bool:
        return self._components is None

    @property
    def window(self) -> tuple[float, float]:
        """Where it begins in its file and how long it is, in seconds; 0: to the end."""
        return self._begin, self._length


def _turns(frame: Any) -> int:
    """Telephones write pictures as their sensor lies, and how they are to be turned."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _source_of(video: Any) -> Any:
    source = video.get_stream_source()
    return source if isinstance(source, str | io.BytesIO) else io.BytesIO(source.read())


class Writer:
    """Frames, in order, into an H.264 file among ComfyUI's temporary ones, with another's sound."""

    def __init__(self, reader: Reader, width: int, height: int) -> None:
        folder = Path(folder_paths.get_temp_directory()) / "comfyfleet"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid.uuid4().hex}.mp4"
        self._reader = reader
        self._file = av.open(str(self.path), "w", options={"movflags": "use_metadata_tags"})
        self._file.metadata.update(reader.metadata)
        self._video = self._file.add_stream("libx264", rate=reader.rate)
        self._video.width, self._video.height = width, height
        # Colours at half the size need even sides.
        self._video.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        self._video.options = dict(_ENCODING)
        self._sound = _Sound(reader, self._file)
        self._first: int | None = None

    def write(self, frame: Frame, pixels_HWC: torch.Tensor) -> None:
        """The frame as it is now, shown when it was shown."""
        if self._first is None:
            self._first = frame.pts
            self._video.codec_context.time_base = frame.time_base
        pixels = pixels_HWC.clamp(0, 1).mul(255).round().byte().contiguous().numpy()
        image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        image.pts, image.time_base = frame.pts - self._first, frame.time_base
        self._file.mux(self._video.encode(image))
        self._sound.write(until=float(image.pts * image.time_base))

    def close(self) -> Any:
        """The finished VIDEO."""
        self._file.mux(self._video.encode(None))
        self._sound.write(until=None)
        self._file.close()
        return InputImpl.VideoFromFile(str(self.path))

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class _Sound:
    """Sound on its way from a file, or from memory, into a file; unchanged if that can hold it."""

    def __init__(self, reader: Reader, file: Any) -> None:
        self._file = file
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None
        if reader.has_file:
            self._packets = self._from_file(reader)
        elif reader.sound is not None:
            self._packets = self._from_memory(reader)

    def write(self, until: float | None) -> None:
        """What is heard before this moment; None: all the rest."""
        while (packet := self._peek()) is not None:
            if until is not None and float((packet.pts or 0) * packet.time_base) > until:
                return
            self._file.mux(packet)
            self._waiting = None

    def _peek(self) -> Any:
        if self._waiting is None:
            self._waiting = next(self._packets, None)
        return self._waiting

    def _from_file(self, reader: Reader) -> Iterator[Any]:
        container = reader.open()
        source = next(iter(container.streams.audio), None)
        if source is None:
            container.close()
            return iter(())
        if source.codec_context.name in _KEPT_SOUND:
            out = self._file.add_stream_from_template(source)
            return self._copied(reader, container, source, out)
        out = self._file.add_stream("aac", rate=source.rate)
        return self._encoded(reader, container, source, out)

    def _copied(self, reader: Reader, container: Any, source: Any, out: Any) -> Iterator[Any]:
        begin, end = _bounds(reader)
        with container:
            shift = int(reader.window[0] / source.time_base)
            for packet in container.demux(source):
                if packet.dts is None or not begin <= float(packet.pts * packet.time_base) < end:
                    continue
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = out
                yield packet

    def _encoded(self, reader: Reader, container: Any, source: Any, out: Any) -> Iterator[Any]:
        begin, end = _bounds(reader)
        with container:
            shift = int(reader.window[0] / source.time_base)
            for frame in container.decode(source):
                if begin <= (frame.time or 0.0) < end:
                    frame.pts -= shift
                    yield from out.encode(frame)
            yield from out.encode(None)

    def _from_memory(self, reader: Reader) -> Iterator[Any]:
        rate = int(reader.sound["sample_rate"])
        out = self._file.add_stream("aac", rate=rate)
        wave = reader.sound["waveform"][0][:, : int(rate / reader.rate * reader.count)]
        return self._of_wave(wave, rate, out)

    def _of_wave(self, wave: torch.Tensor, rate: int, out: Any) -> Iterator[Any]:
        layout = "mono" if wave.shape[0] == 1 else "stereo"
        samples = wave[:2].T.reshape(1, -1).float().contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        yield from out.encode(frame)
        yield from out.encode(None)


def _bounds(reader: Reader) -> tuple[float, float]:
    """Which sound is meant; some files begin with sound from before their beginning."""
    begin, length = reader.window
    return begin or float("-inf"), begin + length if length else float("inf")
