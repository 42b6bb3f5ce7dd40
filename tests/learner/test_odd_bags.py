"""Bags that are odd: files that come and go, metadata of nonsense, messages of a byte, names too long, sqlite
without metadata. What is wrong with one is told with its name, costs the others nothing, and no picture or
number of another recording is given for its own."""

from __future__ import annotations

import json
import sqlite3
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

sys.path.append(str(Path(__file__).parent))
from foreign_bags import Row, at, cell, picture, state, whole, write

from recap.cli import main
from recap_learner.data import reading
from recap_learner.data.bag_images import EpisodeImages
from recap_learner.data.episodes import (
    ConversionError,
    amend_bags,
    convert_bags,
    find_bags,
    load_episode,
    read_attempts,
    read_images,
)
from recap_learner.data.images import decode
from recap_learner.data.inspection import inspect_store
from recap_learner.data.store import Store
from recap_learner.exchange import lerobot_export
from recap_learner.exchange.rerun_export import export_rerun
from recap_learner.exchange.video import ExchangeError
from recap_station import topics
from recap_station.bag_reader import BagReader
from recap_station.bags import BagError, amend_metadata
from recap_station.cdr import compressed_image, typestore
from recap_station.contract import load_task

EYE = "/eye/image_raw/compressed"


def later(seconds: float) -> list[Row]:
    """Another recording: of receipt and stamps so much later, its pictures white."""
    jpeg = cv2.imencode(".jpg", np.full((6, 8, 3), 250, np.uint8))[1].tobytes()
    rows = []
    for topic, kind, received, cdr in whole():
        now = received + round(seconds * 1e9)
        stamp = int(now // 10**9).to_bytes(4, "little") + int(now % 10**9).to_bytes(4, "little")
        moved = compressed_image(now, jpeg) if topic == EYE else cdr[:4] + stamp + cdr[12:]
        rows.append((topic, kind, now, moved))
    return rows


def sqlite_file(file: Path, rows: list[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE topics(id INTEGER PRIMARY KEY,name TEXT,type TEXT)")
        columns = "id INTEGER PRIMARY KEY,topic_id INTEGER,timestamp INTEGER,data BLOB"
        database.execute(f"CREATE TABLE messages({columns})")
        names = list(dict.fromkeys((topic, kind) for topic, kind, _, _ in rows))
        for number, (topic, kind) in enumerate(names):
            database.execute("INSERT INTO topics VALUES(?, ?, ?)", (number, topic, kind))
        for topic, kind, received, cdr in rows:
            said = (names.index((topic, kind)), received, cdr)
            database.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)", said)
        database.commit()
    return file


def described(bag: Path, text: str = "", **more: Any) -> Path:
    """Give a bag of one file bag_0.mcap a metadata.yaml."""
    information = {"version": 9, "relative_file_paths": ["bag_0.mcap"], **more}
    text = text or yaml.safe_dump({"rosbag2_bagfile_information": information})
    (bag / "metadata.yaml").write_text(text)
    return bag


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_a_single_file_in_a_folder_is_the_bag_and_not_its_folder(tmp_path: Path) -> None:
    bags, store, three = tmp_path / "bags", tmp_path / "store", cell(tmp_path)
    write(bags / "run_b.mcap", whole())
    [file], problems = convert_bags([bags], store, cell=three, unknown=True)
    assert problems == [] and load_episode(file).info.id == "run_b"
    write(bags / "demo_a.mcap", later(-3600))
    files, problems = convert_bags([bags], store, cell=three, unknown=True)
    assert problems == [] and [load_episode(f).info.id for f in files] == ["demo_a", "run_b"]
    info = load_episode(file).info
    shown = read_images(info.bag_in(store), "eye", [0, 5], info.streams, info.files)
    assert [round(image.mean()) for image in shown] == [0, 50]
    write(tmp_path / "killed" / "killed_0.mcap", whole())  # as a recorder that was killed leaves it
    assert find_bags([tmp_path / "killed"]) == [tmp_path / "killed"]


def test_images_of_a_bag_with_other_files_than_were_converted_are_refused(tmp_path: Path) -> None:
    rows, bag, store = whole(), tmp_path / "bag", tmp_path / "store"
    for k in range(4):
        write(bag / f"bag_{k}.mcap", [row for row in rows if at(15 * k) <= row[2] < at(15 * k + 15)])
    [file], _ = convert_bags([bag], store, cell=cell(tmp_path), unknown=True)
    (bag / "bag_0.mcap").unlink()
    episode = load_episode(file)
    info = episode.info
    with pytest.raises(ConversionError, match=r"its files are bag_1\.mcap, .*, wanted .* bag_0\.mcap, "):
        next(read_images(bag, "eye", [0], info.streams, info.files))
    with pytest.raises(ConversionError, match="its files are"):
        EpisodeImages(episode, store)
    [text] = [f.text for f in inspect_store(Store(store)).findings if f.kind == "unreadable"]
    assert "its files are" in text


@pytest.mark.parametrize("mode", ["NONE", "FILE", "MESSAGE"])
@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
def test_a_bag_that_lost_its_metadata_is_described_as_what_it_is(
    tmp_path: Path, storage: str, mode: str
) -> None:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin[storage])
    if mode != "NONE":
        writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, kind, received, cdr in whole():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=typestore())
            writer.write(connections[topic], received, cdr)
    bag, name = tmp_path / "bag", "rosbag2_bagfile_information"
    was = yaml.safe_load((bag / "metadata.yaml").read_text())[name]
    (bag / "metadata.yaml").unlink()
    done, problems = amend_bags([bag], {"recap.outcome": "success"})
    assert done == [bag] and problems == []
    now = yaml.safe_load((bag / "metadata.yaml").read_text())[name]
    for key in ("storage_identifier", "compression_format", "message_count", "relative_file_paths",
                "starting_time", "duration"):  # fmt: skip
        assert now[key] == was[key], key
    assert now["compression_mode"].upper() == was["compression_mode"].upper()
    with Reader(bag) as reader:  # another's, which believes it
        assert sum(1 for _ in reader.messages()) == len(whole())
    [made], _ = convert_bags([bag], tmp_path / "store", cell=cell(tmp_path))
    assert load_episode(made).info.outcome == "success" and load_episode(made).info.damage == ""


def test_the_same_bag_with_another_task_or_none_is_converted_anew(tmp_path: Path) -> None:
    store, three, task = tmp_path / "store", cell(tmp_path), load_task("handover_insert")
    file = write(tmp_path / "log.mcap", whole())
    names = []
    for asked in (three, replace(three, task=task), replace(three, task=replace(task, name="other")), three):
        [made], _ = convert_bags([file], store, cell=asked, unknown=True)
        names.append(load_episode(made).info.task.name)
    assert names == ["unnamed", task.name, "other", "unnamed"]


def test_a_bag_once_read_as_another_station_is_read_by_its_own_contract_again(tmp_path: Path) -> None:
    three, task = cell(tmp_path), load_task("handover_insert")
    carried = {"recap.station": json.dumps(three.station.to_dict()), "recap.task": json.dumps(task.to_dict())}
    bag = tmp_path / "bag"
    write(bag / "bag_0.mcap", whole())
    described(bag, custom_data={**carried, "recap.outcome": "success"})
    other = cell(tmp_path, command={"topic": "joint_states"})
    read_as = []
    for asked in (other, None, None):
        [made], problems = convert_bags([bag], tmp_path / "store", cell=asked)
        assert problems == []
        streams = load_episode(made).info.streams
        assert streams is not None
        read_as.append((streams.command[0].topic, made.stat().st_mtime_ns))
    assert [topic for topic, _ in read_as] == ["joint_states", "joint_command", "joint_command"]
    assert read_as[1] == read_as[2]  # and not anew each time


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\1\0\0\0"])
def test_a_message_of_a_byte_is_passed_over_by_inspection(tmp_path: Path, data: bytes) -> None:
    rows = whole()
    rows.insert(20, ("/joint_states", topics.JOINT_STATE_TYPE, at(6), data))
    rows.insert(30, (EYE, topics.IMAGE_TYPE, at(9), data))
    [file], _ = convert_bags([write(tmp_path / "log.mcap", rows)], tmp_path / "store",
                             cell=cell(tmp_path), unknown=True)  # fmt: skip
    report = inspect_store(Store(tmp_path / "store"))
    assert not [f for f in report.findings if f.kind == "unreadable"]
    assert report.episodes[0].streams["joint_states"].messages == len(load_episode(file))


def test_a_picture_larger_than_can_be_decoded_is_a_finding(tmp_path: Path) -> None:
    png = bytearray(cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes())
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    rows = [
        (EYE, row[1], row[2], compressed_image(row[2], bytes(png))) if row == picture(10) else row
        for row in whole()
    ]
    convert_bags([write(tmp_path / "log.mcap", rows)], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    [text] = [f.text for f in inspect_store(Store(tmp_path / "store")).findings if f.kind == "unreadable"]
    assert "cannot be decoded" in text and "\n" not in text
    with pytest.raises(ConversionError, match="cannot be decoded"):
        decode(bytes(png), (6, 8), np.zeros((6, 8, 3), np.uint8))


def test_an_outcome_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = tmp_path / "bag"
    write(bag / "bag_0.mcap", whole())
    described(bag, custom_data={"recap.outcome": "Success"})
    cell(tmp_path)
    assert run("convert", bag, "--store", tmp_path / "s", "--station", tmp_path / "three.yaml", "--json") == 0
    said = capsys.readouterr()
    assert "outcome 'Success', wanted success, failure, discarded" in said.err
    told = json.loads(said.out.splitlines()[-1])
    assert told["without_outcome"] == told["episodes"]


DATE = "rosbag2_bagfile_information: {relative_file_paths: [bag_0.mcap], when: 2001-99-99}"
NONSENSE = {
    "date": DATE,
    "brackets": "[" * 3000,
    "number": f"rosbag2_bagfile_information: {{relative_file_paths: [bag_0.mcap], n: {'9' * 6000}}}",
    "text": "rosbag2_bagfile_information: {relative_file_paths: bag_0.mcap}",
    "numbers": "rosbag2_bagfile_information: {relative_file_paths: [1, [2]]}",
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_metadata_of_nonsense_is_as_none(tmp_path: Path, text: str) -> None:
    bag = tmp_path / "bag"
    write(bag / "bag_0.mcap", whole())
    described(bag, text)
    [episode] = read_attempts(bag, tmp_path, cell(tmp_path))
    assert len(episode) == 60 and "is not a bag's metadata" in episode.info.damage


def test_a_listed_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    write(bag / "bag_0.mcap", whole())
    described(bag, relative_file_paths=["bag_0.mcap", "x" * 5000])
    [episode] = read_attempts(bag, tmp_path, cell(tmp_path))
    assert len(episode) == 60 and episode.info.damage.endswith("x is missing")


def bomb(levels: int = 30) -> str:
    lines = ["rosbag2_bagfile_information:", "  relative_file_paths: [bag_0.mcap]", "  custom_data:"]
    lines += ["    a0: &a0 [boom, boom]"]
    lines += [f"    a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_aliases_of_aliases_are_refused(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    write(bag / "bag_0.mcap", whole())
    described(bag, bomb(24))
    reader = BagReader(bag)
    assert reader.metadata == {} and "is not a bag's metadata" in reader.damage[0]
    with pytest.raises(BagError, match="not a bag's metadata"):
        amend_metadata(bag, {"recap.outcome": "success"})
    shared = "custom_data: {recap.outcome: &o failure, recap.reason: *o, odd: [1]}"
    described(bag, f"rosbag2_bagfile_information:\n  relative_file_paths: [bag_0.mcap]\n  {shared}\n")
    reader = BagReader(bag)  # one alias for several is a writer's habit
    assert reader.metadata == {"recap.outcome": "failure", "recap.reason": "failure"}
    assert reader.damage == ["metadata.yaml: odd is no text and left out"]


def test_of_many_bags_those_that_cannot_be_labelled_are_named(tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    for name in "abc":
        write(bags / name / "bag_0.mcap", whole())
        described(bags / name)
    described(bags / "b", "[" * 3000)
    described(bags / "c", "rosbag2_bagfile_information: [")
    done, problems = amend_bags([bags], {"recap.outcome": "success"})
    assert done == [bags / "a"]
    assert [line.startswith(str(bags / name)) for name, line in zip("bc", problems, strict=True)] == [
        True
    ] * 2


def test_what_is_no_bag_costs_the_others_nothing(tmp_path: Path) -> None:
    good = write(tmp_path / "good.mcap", whole())
    old, packed = tmp_path / "r.bag", tmp_path / "r.mcap.gz"
    for file in (old, packed):
        file.write_bytes(b"#ROSBAG V2.0\n")
    asked = [tmp_path / "gone.mcap", good, old, packed]
    files, problems = convert_bags(asked, tmp_path / "store", cell=cell(tmp_path), unknown=True)
    assert [load_episode(file).info.id for file in files] == ["good"]
    assert ["found none" in problems[0], "ROS 1" in problems[1], "gzip" in problems[2]] == [True] * 3
    for place in asked[:1] + asked[2:]:
        with pytest.raises(ConversionError, match="wanted a bag or a folder of bags"):
            convert_bags([place], tmp_path / "store", cell=cell(tmp_path))
    bag = tmp_path / "bag"
    write(bag / "bag_0.mcap", whole())
    done, problems = amend_bags([bag, old], {"recap.outcome": "success"})
    assert done == [bag] and len(problems) == 1 and str(old) in problems[0]


def test_a_folder_that_may_not_be_read_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags = tmp_path / "bags"
    for name in ("good", "shut"):
        write(bags / name / f"{name}_0.mcap", whole())
    inside: Callable[[Path], list[Path]] = reading._bags_in

    def refused(folder: Path) -> list[Path]:
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied", str(folder / "metadata.yaml"))
        return inside(folder)

    monkeypatch.setattr(reading, "_bags_in", refused)
    files, problems = convert_bags([bags], tmp_path / "store", cell=cell(tmp_path), unknown=True)
    assert [load_episode(file).info.id for file in files] == ["good"]
    assert problems == [f"{bags / 'shut' / 'metadata.yaml'}: Permission denied"]
    with pytest.raises(PermissionError):
        find_bags([bags])


def test_a_name_too_long_for_an_episode_costs_the_others_nothing(tmp_path: Path) -> None:
    for name in ("a", "机" * 78, "z"):
        write(tmp_path / "bags" / f"{name}.mcap", whole())
    files, [problem] = convert_bags(
        [tmp_path / "bags"], tmp_path / "store", cell=cell(tmp_path), unknown=True
    )
    assert [load_episode(file).info.id for file in files] == ["a", "z"]
    assert "机.mcap: its episode's file has a name too long" in problem


def test_recordings_whose_times_do_not_follow_on_are_several_bags(tmp_path: Path) -> None:
    rows = whole()
    halves = [row for row in rows if row[2] < at(30)], [row for row in rows if row[2] >= at(30)]
    for number, part in enumerate(halves):
        write(tmp_path / "renamed" / f"demo_{number}.mcap", part)
        write(tmp_path / "demo" / f"demo_{number + 1}.mcap", part)
        sqlite_file(tmp_path / "sqlite" / f"demo_{number}.db3", part)
    for name in ("renamed", "demo", "sqlite"):
        assert find_bags([tmp_path / name]) == [tmp_path / name]
    for first, ending in ((1, "mcap"), (0, "mcap"), (0, "db3")):
        folder = tmp_path / f"runs{first}{ending}"
        make = write if ending == "mcap" else sqlite_file
        two = [folder / f"demo_{first + k}.{ending}" for k in range(2)]
        make(two[0], rows)
        make(two[1], later(100))
        assert find_bags([folder]) == two
    files, _ = convert_bags([tmp_path / "runs0mcap"], tmp_path / "s", cell=cell(tmp_path), unknown=True)
    assert [len(load_episode(file)) for file in files] == [60, 60]


def test_inspection_of_what_is_no_store_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "bags" / "bag_0.mcap", [state(0)])
    assert run("inspect", tmp_path / "bags", "--fail-on", "any", "--json") == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not said["ok"] and "holds no episode" in said["error"]
    assert not (tmp_path / "bags" / "inspection.html").exists()
    run("inspect", "--help")
    assert "damage" in capsys.readouterr().out


def labelled(tmp_path: Path, rows: list[Row]) -> Store:
    [file], _ = convert_bags([write(tmp_path / "log.mcap", rows)], tmp_path / "store",
                             cell=cell(tmp_path), unknown=True)  # fmt: skip
    store, ticks = Store(tmp_path / "store"), len(load_episode(file))
    store.save_labels("run1", "log", {"value": np.zeros(ticks)}, {})
    return store


class _Frames:
    """In place of a writer of videos, which needs PyAV."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int], codec: str):
        self._path, self._size = path, size

    def write(self, image: np.ndarray) -> None:
        if image.shape[:2] != self._size:
            raise ExchangeError(f"{image.shape}")

    def close(self) -> None:
        self._path.write_bytes(b"")


@pytest.mark.parametrize("bad", ["size", "bytes"])
def test_an_export_that_fails_says_where_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(lerobot_export, "VideoWriter", _Frames)
    jpeg = cv2.imencode(".jpg", np.zeros((12, 16, 3), np.uint8))[1].tobytes()
    data = jpeg if bad == "size" else b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9"
    spoilt = (EYE, topics.IMAGE_TYPE, at(31), compressed_image(at(31), data))
    rows = sorted([*whole(), spoilt], key=lambda row: row[2])
    store, out = labelled(tmp_path, rows), tmp_path / "dataset"
    for _ in range(2):
        with pytest.raises(ExchangeError, match="log, eye: "):
            lerobot_export.export_lerobot(store, out)
    assert not list(tmp_path.glob("*dataset*"))
    out.mkdir()  # an empty folder is new
    assert lerobot_export.export_lerobot(labelled(tmp_path, whole()), out) == 1
    assert (out / "meta" / "info.json").is_file() and not list(tmp_path.glob(".*dataset*"))


def test_an_export_of_labels_that_there_are_not_is_refused(tmp_path: Path) -> None:
    store = labelled(tmp_path, whole())
    with pytest.raises(ExchangeError, match="labels 'rnu1', wanted run1"):
        lerobot_export.export_lerobot(store, tmp_path / "dataset", tag="rnu1")


def test_a_recording_with_labels_that_there_are_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", ModuleType("rerun"))  # not needed for a refusal
    store = labelled(tmp_path, whole())
    with pytest.raises(ExchangeError, match="labels 'rnu1', wanted run1"):
        export_rerun(store, tmp_path / "out", tag="rnu1")


def test_what_stands_behind_the_end_of_a_file_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "log.mcap", whole())
    file.write_bytes(file.read_bytes() + write(tmp_path / "other.mcap", later(2)).read_bytes())
    [episode] = read_attempts(file, tmp_path, cell(tmp_path))
    assert len(episode) == 60 and "bytes after the footer, which are left out" in episode.info.damage
