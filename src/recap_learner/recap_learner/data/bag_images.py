"""Images out of bags, decoded: by number through the whole bag, or by place without reading the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from recap_learner.data.episode_file import ConversionError, Episode
from recap_learner.data.messages import PIXELS, Unusable, image_reader
from recap_station import cdr_scan, topics
from recap_station.bag_reader import BagReader, FilePlace
from recap_station.cdr_scan import CdrError
from recap_station.streams import RAW_IMAGE_TYPE, Stream, Streams


def read_images(
    bag: Path,
    camera: str,
    wanted: Sequence[int] | np.ndarray,
    streams: Streams | None = None,
    files: Sequence[str] = (),
) -> Iterator[np.ndarray]:
    """Decode the wanted images of one camera, in ascending order → (H, W, 3) uint8 RGB each.

    wanted: as `Episode.image` numbers them. streams, files: the episode's (`EpisodeInfo`). Raises
    ConversionError where one is missing, or the bag has other files.
    """
    numbers = sorted({int(i) for i in wanted})
    want = iter(numbers)
    following = next(want, None)
    for number, (data, kind) in enumerate(_usable(bag, camera, streams, files) if numbers else ()):
        if number == following:
            yield decode_message(data, kind)
            following = next(want, None)
            if following is None:
                return
    if following is not None:
        raise ConversionError(f"{bag}: image {following} of {camera} is missing")


def recorded_images(
    bag: Path, camera: str, count: int, streams: Streams | None = None, files: Sequence[str] = ()
) -> Iterator[bytes | memoryview]:
    """The first `count` images of one camera, or as many as there are, as recorded; raw ones as PNG.

    streams, files: as of `read_images`.
    """
    for data, kind in islice(_usable(bag, camera, streams, files), count):
        if kind == RAW_IMAGE_TYPE:
            yield cv2.imencode(".png", decode_message(data, kind)[..., ::-1])[1].tobytes()
        else:
            picture = cdr_scan.compressed_image(data)
            yield data[picture.offset : picture.offset + picture.size]


def episode_bag(bag: Path, files: Sequence[str], check: bool = True) -> BagReader:
    """The bag of an episode that was made of `files`; none: it is not known of which. Raises ConversionError
    where the bag has others by now: numbers of images, and of files, would mean something else."""
    reader = BagReader(bag, check)
    found = [file.name for file in reader.files]
    if files and found != list(files):
        raise ConversionError(
            f"{bag}: its files are {_listed(found)}, wanted those converted, {_listed(files)}"
        )
    return reader


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], f"... ({len(names)} in all)"] if len(names) > 4 else names)


def _usable(
    bag: Path, camera: str, streams: Streams | None, files: Sequence[str]
) -> Iterator[tuple[memoryview, str]]:
    """(CDR, type) of the messages that ticks can have images of, in order of arrival."""
    reader = episode_bag(bag, files)
    stream = streams.image(camera) if streams else Stream(topics.image_topic(camera))
    kind = stream.type or reader.topics.get(stream.topic, topics.IMAGE_TYPE)
    usable = image_reader(kind)
    for _, time_ns, data, _ in reader.scan([stream.topic]):
        try:
            usable(data, time_ns)
        except (CdrError, Unusable):
            continue
        yield data, kind


class EpisodeImages:
    """Images of one episode by tick. `store`: the folder that its file is in."""

    def __init__(self, episode: Episode, store: Path):
        self._episode = episode
        self._reader = episode_bag(episode.info.bag_in(store), episode.info.files, check=False)

    def read(self, camera: str, tick: int) -> np.ndarray:
        """The image that a tick has → (H, W, 3) uint8 RGB. Raises ConversionError where it has none."""
        place = FilePlace(*(int(value) for value in self._episode.image_at[camera][tick]))
        if place.file < 0:
            raise ConversionError(f"tick {tick} has no image of {camera}")
        streams = self._episode.info.streams
        kind = streams.image(camera).type if streams else topics.IMAGE_TYPE
        return decode_message(memoryview(self._reader.read(place)), kind)


def decode_message(data: memoryview, kind: str) -> np.ndarray:
    """CDR of a CompressedImage or Image → (H, W, 3) uint8 RGB. Raises ConversionError."""
    try:
        if kind != RAW_IMAGE_TYPE:
            picture = cdr_scan.compressed_image(data)
            return decode_jpeg(np.frombuffer(data[picture.offset : picture.offset + picture.size], np.uint8))
        picture = cdr_scan.raw_image(data)
    except CdrError as error:
        raise ConversionError(str(error)) from error
    channels = PIXELS.get(picture.encoding, 0)
    row = picture.width * channels
    whole = row and picture.step >= row and picture.size >= picture.step * picture.height
    if not whole:
        raise ConversionError(
            f"an image of {picture.width}×{picture.height} {picture.encoding!r} in {picture.size} bytes"
        )
    pixels = np.frombuffer(data[picture.offset : picture.offset + picture.step * picture.height], np.uint8)
    rows = pixels.reshape(picture.height, picture.step)[:, :row]
    rows = rows.reshape(picture.height, picture.width, channels)
    if picture.encoding == "rgb8":
        return rows.copy()
    return cv2.cvtColor(rows, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_GRAY2RGB)


def undecodable(data: np.ndarray | bytes | memoryview, error: cv2.error) -> str:
    """In one line what OpenCV does not decode, such as a picture larger than it takes."""
    return " ".join(f"an image of {len(data)} bytes that cannot be decoded: {error.err or error}".split())


def decode_jpeg(data: np.ndarray) -> np.ndarray:
    """JPEG or PNG bytes → (H, W, 3) uint8 RGB. Raises ConversionError if they are not an image."""
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if len(buffer) else None
    except cv2.error as error:
        raise ConversionError(undecodable(data, error)) from error
    if image is None:
        raise ConversionError(f"{len(data)} bytes that are not a JPEG or PNG image")
    return image
