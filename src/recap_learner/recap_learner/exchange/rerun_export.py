"""Episodes as rerun recordings (.rrd), one an episode: to be looked at with `rerun FILE`.

Needs rerun-sdk, of requirements-exchange.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recap_learner.data.image_index import PictureReader, locate_images
from recap_learner.data.store import Store
from recap_learner.exchange.labels import labels_tag
from recap_learner.exchange.video import ExchangeError
from recap_station.files import replace_file


def export_rerun(
    store: Store,
    out: Path,
    tag: str = "",
    episodes: Sequence[str] = (),
    progress: Callable[[float, str], None] | None = None,
) -> list[Path]:
    """Write `<out>/<id>.rrd` of the given episodes, or of all → the files. Raises ExchangeError."""
    try:
        import rerun
    except ImportError as error:
        raise ExchangeError(
            "recordings need rerun-sdk: .venv/bin/pip install --no-deps -r requirements-exchange.txt"
        ) from error
    names = list(episodes) or [entry.id for entry in store.index()[0]]
    tag = labels_tag(store, tag)
    files = []
    for number, name in enumerate(names):
        file = out / f"{name}.rrd"
        replace_file(file, partial(_write, rerun, store, name, tag))
        files.append(file)
        if progress:
            progress((number + 1) / len(names), f"{number + 1}/{len(names)} episodes")
    return files


def _write(rerun: Any, store: Store, name: str, tag: str, path: Path) -> None:
    episode = store.load(name)
    station = episode.info.station
    recording = rerun.RecordingStream("recap", recording_id=name)
    recording.save(path)
    times = [rerun.TimeColumn("time", timestamp=episode.time_ns.astype("datetime64[ns]"))]
    send = partial(rerun.send_columns, recording=recording, strict=True)

    def curves(where: str, values: np.ndarray, names: Sequence[str]) -> None:
        rerun.log(where, rerun.SeriesLines(names=list(names)), static=True, recording=recording)
        width = values.shape[1]
        rows = rerun.Scalars.columns(scalars=values.astype(np.float64).reshape(-1))
        send(where, times, rows.partition([width] * len(values)))

    for where, values in (
        ("state", episode.state),
        ("command", episode.command),
        ("policy_command", episode.policy_command),
        ("teleop_command", episode.teleop_command),
    ):
        curves(where, values, station.joint_names)
    curves("correction", episode.correction[:, None], ["correction"])
    for column, values in (store.load_labels(tag, name) or {} if tag else {}).items():
        curves(f"labels/{column}", values[:, None], [column])
    said = f"{episode.info.outcome}: {episode.info.reason}" if episode.info.reason else episode.info.outcome
    rerun.log("outcome", rerun.TextLog(said), static=True, recording=recording)
    for where, texts in (("source", episode.source), ("stage", episode.stage)):
        for change in np.flatnonzero(np.concatenate([[True], texts[1:] != texts[:-1]])):
            recording.set_time("time", timestamp=episode.time_ns[change].astype("datetime64[ns]"))
            rerun.log(where, rerun.TextLog(str(texts[change])), recording=recording)
    for camera, table in locate_images(episode, store.folder).items():
        index, reader = episode.image[camera], PictureReader(table.files)
        for number in np.unique(index[index >= 0]):
            tick = int(np.argmax(index == number))
            stamp = int(episode.time_ns[tick] - episode.image_age[camera][tick].astype(np.float64) * 1e9)
            data = bytes(reader.read(table.file[number], table.offset[number], table.length[number]))
            media = "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"
            recording.set_time("time", timestamp=np.datetime64(stamp, "ns"))
            shown = rerun.EncodedImage(contents=data, media_type=media)
            rerun.log(f"camera/{camera}", shown, recording=recording)
        reader.close()
    recording.flush()
    recording.disconnect()
