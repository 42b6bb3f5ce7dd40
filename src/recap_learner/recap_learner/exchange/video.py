"""Video files by PyAV, which is installed with requirements-exchange.txt."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CODECS = {"h264": "libx264", "av1": "libsvtav1"}
_OPTIONS = {
    "h264": {"crf": "18", "preset": "veryfast", "g": "2"},  # every second frame a key frame: read at random
    "av1": {"crf": "24", "preset": "8", "g": "2"},
}


class ExchangeError(ValueError):
    """A data set cannot be written or read. One line with what was found and wanted."""


def pyav() -> Any:
    """The module `av`. Raises ExchangeError that says how it is installed."""
    try:
        import av
    except ImportError as error:
        raise ExchangeError(
            "videos need PyAV: .venv/bin/pip install --no-deps -r requirements-exchange.txt"
        ) from error
    return av


class VideoWriter:
    """Frames (H, W, 3) uint8 RGB at `fps` into an MP4. Raises ExchangeError for a frame of another size."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int], codec: str):
        if codec not in CODECS:
            raise ExchangeError(f"codec {codec!r}: wanted {' or '.join(CODECS)}")
        self._av = pyav()
        self._size = size
        self._count = 0
        self._file = self._av.open(str(path), "w", format="mp4")
        self._stream = self._file.add_stream(CODECS[codec], rate=fps, options=_OPTIONS[codec])
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        self._step = Fraction(1, fps)

    def write(self, image: np.ndarray) -> None:
        if image.shape != (*self._size, 3):
            raise ExchangeError(f"image {self._count} is {image.shape}, wanted {(*self._size, 3)}")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self._count
        frame.time_base = self._step
        self._count += 1
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._file.mux(self._stream.encode())
        self._file.close()


def read_frames(path: Path, fps: float, start_s: float, count: int) -> Iterator[np.ndarray]:
    """`count` frames from `start_s` on → (H, W, 3) uint8 RGB each. Raises ExchangeError if any is missing."""
    given = 0
    with pyav().open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        if start_s > 0:
            file.seek(int(start_s / stream.time_base), stream=stream, backward=True)
        for frame in file.decode(stream):
            if given == count:
                return
            number = round((frame.time - start_s) * fps)
            if number < given:
                continue
            if number > given:
                raise ExchangeError(f"{path}: frame {given} from {start_s} s on is missing")
            yield frame.to_ndarray(format="rgb24")
            given += 1
    if given != count:
        raise ExchangeError(f"{path}: {given} frames from {start_s} s on, wanted {count}")
