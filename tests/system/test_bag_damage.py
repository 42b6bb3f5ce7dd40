"""Bags that are damaged anywhere: what is whole is read, what is lost is told, nothing is wrong in silence.

Bytes of good bags are cut off, cut out, put in, flipped, zeroed and overwritten at random places. For MCAP,
whose chunks carry checksums, every message of a chunk that was not touched must come back, and no message
that was never written. sqlite3 keeps no checksums: a byte changed within a message is not noticed there.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mcap.writer import CompressionType, IndexType, Writer

from recap_learner.data.episodes import ConversionError, read_attempts
from recap_station import topics
from recap_station.bag_reader import BagReader
from recap_station.bags import BagWriter
from recap_station.cdr import compressed_image, definition, joint_state, serialize
from recap_station.contract import ContractError, load_station, load_task
from recap_station.mcap_records import Records

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START, STEP, TICKS = 1_700_000_000_000_000_000, 20_000_000, 150
FEW, MANY = 20, 334  # places of each of the six kinds of file: 120, and 2,004
ONCE_WRONG = {"lz4": (1172,), "sqlite3": (1259,)}
CUT, CUT_OUT, FLIP, ZERO, PUT_IN, NOISE = HOWS = ("cut", "cut out", "flip", "zero", "put in", "noise")
Message = tuple[str, int, bytes]


@dataclass(frozen=True)
class Good:
    """A whole bag: its folder, its messages in order, and of MCAP the span and messages of each chunk."""

    folder: Path
    file: Path
    messages: tuple[Message, ...]
    chunks: tuple[tuple[int, int, frozenset[Message]], ...]


def stream() -> Iterator[Message]:
    rng = np.random.default_rng(0)
    for tick in range(TICKS):
        now = START + tick * STEP
        if tick in (0, TICKS - 1):
            yield topics.EPISODE, now, serialize(topics.EPISODE_TYPE, stamp_ns=now, state=1 + (tick > 0))
        values = rng.normal(0, 0.3, STATION.dof)
        yield topics.JOINT_STATES, now, joint_state(now, STATION.joint_names, values)
        yield topics.JOINT_COMMAND, now, joint_state(now, STATION.joint_names, values + 0.01, "policy")
        if tick % 5 == 0:
            jpeg = b"\xff\xd8\xff\xe0" + rng.integers(0, 255, 3000, dtype=np.uint8).tobytes() + b"\xff\xd9"
            for camera in STATION.camera_names:
                yield topics.image_topic(camera), now, compressed_image(now, jpeg, camera)


def make(folder: Path, kind: str) -> Good:
    """A bag of one kind of file, with metadata.yaml."""
    bag = folder / "bag"
    recorded = topics.recorded_topics(STATION)
    messages = tuple(stream())
    with BagWriter(bag, recorded, topics.LATCHED) as writer:
        contract = {"recap.task": json.dumps(TASK.to_dict()), "recap.station": json.dumps(STATION.to_dict())}
        writer.set_metadata({**contract, "recap.outcome": "success"})
        for k, message in enumerate(messages):
            writer.write(*message)
            if k % 20 == 19:
                writer.flush()
    file = bag / "bag_0.mcap"
    if kind == "sqlite3":
        file.unlink()
        file = bag / "bag_0.db3"
        write_sqlite(file, recorded, messages)
        described = bag / "metadata.yaml"
        described.write_text(described.read_text().replace(".mcap", ".db3"))
    elif kind != "plain":
        write_mcap(file, recorded, messages, kind)
    chunks = tuple(chunks_of(file)) if file.suffix == ".mcap" else ()
    good = Good(bag, file, messages, chunks)
    assert list(BagReader(bag).messages()) == list(messages) and not BagReader(bag).damage
    return good


def write_mcap(file: Path, recorded: dict[str, str], messages: tuple[Message, ...], kind: str) -> None:
    packing = {"lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}.get(kind, CompressionType.NONE)
    with open(file, "wb") as opened:
        writer = Writer(
            opened,
            chunk_size=20_000,
            compression=packing,
            use_chunking=kind != "unchunked",
            index_types=IndexType.NONE if kind == "no index" else IndexType.ALL,
            use_statistics=kind != "no index",
            use_summary_offsets=kind != "no index",
        )
        writer.start(profile="ros2")
        channels = {}
        for topic, name in recorded.items():
            schema = writer.register_schema(name, "ros2msg", definition(name).encode())
            channels[topic] = writer.register_channel(f"/{topic}", "cdr", schema)
        for topic, time_ns, cdr in messages:
            writer.add_message(channels[topic], time_ns, cdr, time_ns)
        writer.finish()


def write_sqlite(file: Path, recorded: dict[str, str], messages: tuple[Message, ...]) -> None:
    """The tables of rosbag2 on Jazzy."""
    database = sqlite3.connect(file)
    database.executescript(
        "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
        "CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL,"
        " metadata TEXT NOT NULL);"
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,"
        " serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL,"
        " type_description_hash TEXT NOT NULL);"
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,"
        " data BLOB NOT NULL);"
        "CREATE INDEX timestamp_idx ON messages (timestamp ASC);"
        "INSERT INTO schema VALUES (4, 'jazzy');"
    )
    numbers = {topic: k for k, topic in enumerate(recorded, 1)}
    rows = [(number, f"/{topic}", recorded[topic], "cdr", "", "") for topic, number in numbers.items()]
    database.executemany("INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?)", rows)
    insert = "INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)"
    database.executemany(insert, ((numbers[topic], time_ns, cdr) for topic, time_ns, cdr in messages))
    database.commit()
    database.close()


def chunks_of(file: Path) -> Iterator[tuple[int, int, frozenset[Message]]]:
    """Span in bytes and messages of each chunk, by the reader's own places in the whole file."""
    inside: dict[int, list[Message]] = {}
    spans = {}
    with open(file, "rb") as opened:
        records = Records(opened.fileno())
        at = 8
        while (record := records.record(at)) is not None:
            if record.opcode == 6:
                spans[at] = record.end
            at = record.end
    for topic, time_ns, data, place in BagReader(file).scan():
        within = place.chunk
        if within < 0:
            within = max((at for at in spans if at < place.offset < spans[at]), default=-1)
        inside.setdefault(within, []).append((topic, time_ns, bytes(data)))
    for at, end in spans.items():
        yield at, end, frozenset(inside.get(at, ()))


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> tuple[bytes, int, int]:
    """→ the damaged file, and the first and last byte that are touched or missing."""
    at = int(rng.integers(0, len(content)))
    length = int(min(10 ** rng.uniform(0, 4.5), len(content) - at))
    if kind == CUT:
        return content[:at], at, len(content)
    if kind == CUT_OUT:
        return content[:at] + content[at + length :], at, at + length
    noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    if kind == PUT_IN:
        return content[:at] + noise + content[at:], at, at
    changed = bytearray(content)
    if kind == FLIP:
        length = min(length, 8)
        for k in range(at, at + length):
            changed[k] ^= 1 << int(rng.integers(0, 8))
    else:
        changed[at : at + length] = bytes(length) if kind == ZERO else noise
    touched = [k for k in range(at, at + length) if changed[k] != content[k]]
    return bytes(changed), min(touched, default=at), max(touched, default=at - 1) + 1


KINDS = ("plain", "lz4", "zstd", "no index", "unchunked", "sqlite3")


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Good]:
    return {kind: make(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere(goods: dict[str, Good], kind: str, tmp_path: Path) -> None:
    try_places(goods[kind], kind, tmp_path, [*range(FEW), *ONCE_WRONG.get(kind, ())])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_two_thousand_places(goods: dict[str, Good], kind: str, tmp_path: Path) -> None:
    try_places(goods[kind], kind, tmp_path, range(1000, 1000 + MANY))


def try_places(good: Good, kind: str, folder: Path, seeds: Iterable[int]) -> None:
    content = good.file.read_bytes()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        how = HOWS[seed % len(HOWS)]
        changed, first, last = damaged(content, how, rng)
        bag = folder / "bag"
        shutil.copytree(good.folder, bag)
        (bag / good.file.name).write_bytes(changed)
        if seed // 6 % 3 == 0:  # as after a crash
            (bag / "metadata.yaml").unlink()
        where = f"seed {seed}: {how} of bytes {first} .. {last} of {len(content)}, {kind}"
        begin = time.monotonic()
        found, damage = read(bag)
        told = episode_damage(bag)
        assert time.monotonic() - begin < 10.0, where
        if set(found) - set(good.messages):  # wrong, and nobody can know: then it must be said of the bag
            assert unchecked(bag), where
        judge(good, how, found, damage, told, (first, last), where)
        shutil.rmtree(bag)


def read(bag: Path) -> tuple[list[Message], list[str]]:
    """Messages and damage; no message and the error where nothing can be read."""
    try:
        reader = BagReader(bag)
        found = list(reader.messages())
        return found, reader.damage
    except ContractError as error:
        assert "\n" not in str(error)
        return [], [str(error)]


def unchecked(bag: Path) -> bool:
    reader = BagReader(bag)
    for _ in reader.messages():
        pass
    return reader.unchecked


def test_a_bag_says_whether_checksums_vouch_for_it(goods: dict[str, Good]) -> None:
    assert {unchecked(good.file) for good in goods.values()} == {True, False}
    for name, good in goods.items():
        assert unchecked(good.file) == (not good.chunks), name


def episode_damage(bag: Path) -> str:
    """What the episodes are flagged with, or why there is none."""
    try:
        return " ".join(episode.info.damage for episode in read_attempts(bag, bag.parent))
    except (ConversionError, ContractError) as error:
        return str(error)


def judge(
    good: Good,
    how: str,
    found: list[Message],
    damage: list[str],
    told: str,
    touched: tuple[int, int],
    where: str,
) -> None:
    first, last = touched
    written, came = set(good.messages), set(found)
    assert len(found) == len(came), where
    if len(came) < len(written):
        assert damage and told, where
    if good.chunks:
        for start, end, inside in good.chunks:
            if end <= first or start >= last:
                lost = len(inside - came)
                assert not lost, f"{where}: {lost} messages of the whole chunk at {start} .. {end}; {damage}"
        assert came <= written, where
    elif good.file.suffix == ".mcap":  # messages outside chunks have no checksum
        assert len(came - written) <= 1 + (last - first) // 300, where
        assert len(came & written) >= share_left(good, how, first, last) - 4, f"{where}: {damage}"
    else:
        structure = first < 5 * 4096  # sqlite's own tables and the topics stand in the first pages
        if not structure and how in (FLIP, ZERO, NOISE):
            assert len(came - written) <= 3 + (last - first) // 400, where
            assert len(came & written) >= 0.75 * len(written) - (last - first) // 400, f"{where}: {damage}"


def share_left(good: Good, how: str, first: int, last: int) -> int:
    """How many messages stand before and after the damage, at least."""
    at, count = 0, 0
    content = good.file.read_bytes()
    for _, _, cdr in good.messages:
        at = content.index(cdr, at)
        count += at + len(cdr) <= first or at - 31 >= last
        at += len(cdr)
    return count


def test_file_of_zeros_with_a_hole_of_a_hundred_gigabytes_is_read_at_once(
    goods: dict[str, Good], tmp_path: Path
) -> None:
    good = goods["plain"]
    bag = tmp_path / "bag"
    shutil.copytree(good.folder, bag)
    with open(bag / "bag_0.mcap", "r+b") as file:
        file.truncate(100 << 30)
    empty = tmp_path / "empty.mcap"
    with open(empty, "wb") as file:
        file.write(b"\x89MCAP0\r\n")
        file.truncate(100 << 30)
    zeros = tmp_path / "zeros.mcap"
    with open(zeros, "wb") as file:
        file.truncate(100 << 30)
    begin = time.monotonic()
    found, damage = read(bag)
    assert set(found) == set(good.messages) and damage
    assert read(empty)[0] == [] and read(empty)[1]
    assert "not an MCAP file" in read(zeros)[1][0]
    assert time.monotonic() - begin < 10.0


def test_bag_that_is_still_being_written_is_read_up_to_there(tmp_path: Path) -> None:
    messages = list(stream())
    writer = BagWriter(tmp_path / "bag", topics.recorded_topics(STATION), topics.LATCHED)
    for message in messages[:200]:
        writer.write(*message)
    writer.flush()
    for message in messages[200:210]:
        writer.write(*message)  # not yet handed over
    found, damage = read(tmp_path / "bag")
    assert found == messages[:200] and "not closed" in damage[0]
    writer.close()
    assert read(tmp_path / "bag") == (messages[:210], [])


def test_database_with_an_unfinished_log_is_read(goods: dict[str, Good], tmp_path: Path) -> None:
    file = tmp_path / "bag_0.db3"
    shutil.copy(goods["sqlite3"].file, file)
    recorder = sqlite3.connect(file)
    recorder.execute("PRAGMA journal_mode=WAL")
    recorder.execute("PRAGMA wal_autocheckpoint=0")
    recorder.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (1, 7, ?)", (b"\0\1\0\0last",))
    recorder.commit()
    found, damage = read(file)
    recorder.close()
    assert found[-1][1:] == (7, b"\0\1\0\0last") and len(found) == len(goods["sqlite3"].messages) + 1
    assert any("not closed" in line for line in damage)


def test_rows_behind_a_page_of_zeros_are_read(goods: dict[str, Good], tmp_path: Path) -> None:
    good = goods["sqlite3"]
    file = tmp_path / "bag.db3"
    content = bytearray(good.file.read_bytes())
    leaves = [at for at in range(4096 * 8, len(content), 4096) if content[at] == 0x0D]
    page = leaves[len(leaves) // 2]
    content[page : page + 4096] = bytes(4096)
    file.write_bytes(content)
    found, damage = read(file)
    assert len(good.messages) - 40 < len(found) < len(good.messages)
    assert found[0] == good.messages[0] and found[-1] == good.messages[-1]
    assert any("damaged page" in line for line in damage)


def test_loops_of_links_and_odd_names(goods: dict[str, Good], tmp_path: Path) -> None:
    from recap_learner.data.episodes import convert_bags, load_episode

    bag = tmp_path / "bags" / "机器人 一 (two words)"
    shutil.copytree(goods["plain"].folder, bag)
    (tmp_path / "bags" / "loop").symlink_to(tmp_path / "bags")
    os.symlink("self.mcap", tmp_path / "bags" / "self.mcap")
    (bag / "around").symlink_to(bag)
    files, problems = convert_bags([tmp_path / "bags"], tmp_path / "store")
    assert [load_episode(file).info.id for file in files] == [bag.name]
    assert problems == []
    assert not load_episode(files[0]).info.damage


def test_file_outside_the_bag_is_not_opened(goods: dict[str, Good], tmp_path: Path) -> None:
    bag = tmp_path / "bags" / "bag"
    shutil.copytree(goods["plain"].folder, bag)
    shutil.move(bag / "bag_0.mcap", tmp_path / "elsewhere.mcap")
    text = (bag / "metadata.yaml").read_text()
    for outside in ("../../elsewhere.mcap", str(tmp_path / "elsewhere.mcap")):
        (bag / "metadata.yaml").write_text(text.replace("bag_0.mcap", outside))
        assert "outside the bag's folder" in read(bag)[1][0]


def test_metadata_of_nonsense_costs_nothing_but_itself(goods: dict[str, Good], tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    shutil.copytree(goods["plain"].folder, bag)
    for nonsense in (b"", b"\xff\xfe", b"- [", b"a: 1", b"rosbag2_bagfile_information: 3"):
        (bag / "metadata.yaml").write_bytes(nonsense)
        found, damage = read(bag)
        assert found == list(goods["plain"].messages) and "metadata.yaml" in damage[0]
