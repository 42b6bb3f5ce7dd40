"""Bags: what is written comes back, other tools open it, a crash or a full disk costs a second at most."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from rosbags.highlevel import AnyReader
from rosbags.serde import SerdeError

from recap_station import topics
from recap_station.bags import (
    BagError,
    BagReader,
    BagWriter,
    amend_metadata,
    compressed_image,
    deserialize,
    joint_state,
    serialize,
)
from recap_station.cdr import stamp_ns, type_hash
from recap_station.contract import ContractError, load_station

STATION = load_station("aloha")
RECORDED = topics.recorded_topics(STATION)
BASE_CAMERA = topics.image_topic("base_camera")


def write_bag(path: Path, ticks: int = 100) -> None:
    with BagWriter(path, RECORDED, topics.LATCHED) as bag:
        bag.set_metadata({"recap.episode": "one", "recap.seed": "42"})
        for tick in range(ticks):
            now = 10**9 + tick * 20_000_000
            positions = STATION.home + 0.001 * tick
            bag.write(topics.JOINT_COMMAND, now, joint_state(now, STATION.joint_names, positions, "policy"))
            bag.write(BASE_CAMERA, now + 1, compressed_image(now, bytes([tick % 256]) * 3000, "base_camera"))
        bag.set_metadata({"recap.outcome": "success"})


def test_messages_come_back_as_written(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag")
    bag = BagReader(tmp_path / "bag")
    assert bag.closed_cleanly
    assert bag.topics == RECORDED
    assert bag.metadata["recap.outcome"] == "success" and bag.metadata["recap.seed"] == "42"
    commands = list(bag.messages({topics.JOINT_COMMAND}))
    assert [time_ns for _, time_ns, _ in commands] == [10**9 + k * 20_000_000 for k in range(100)]
    last = deserialize(commands[-1][2], topics.JOINT_STATE_TYPE)
    np.testing.assert_array_equal(last.position, STATION.home + 0.001 * 99)
    assert tuple(last.name) == STATION.joint_names and last.header.frame_id == "policy"
    assert stamp_ns(last) == commands[-1][1]
    assert sum(1 for _ in bag.messages()) == 200


def test_rosbags_opens_a_bag_without_our_code(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag")
    with AnyReader([tmp_path / "bag"]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts["/joint_command"] == 100 and counts["/base_camera/image_raw/compressed"] == 100
        latched = next(c for c in reader.connections if c.topic == "/control_mode")
        assert latched.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"  # type: ignore[union-attr]
        images = [c for c in reader.connections if c.topic.endswith("compressed")]
        connection, _, raw = next(iter(reader.messages(images)))
        assert bytes(reader.deserialize(raw, connection.msgtype).data) == b"\0" * 3000
        assert set(reader.typestore.fielddefs) >= {"recap_interfaces/msg/Episode"}  # its definition is inside


def test_mcap_reader_finds_summary_schemas_and_qos(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag")
    with open(tmp_path / "bag" / "bag_0.mcap", "rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        summary = reader.get_summary()
        assert summary and summary.statistics and summary.statistics.message_count == 200
        assert all(channel.schema_id in summary.schemas for channel in summary.channels.values())
        assert all("offered_qos_profiles" in channel.metadata for channel in summary.channels.values())
        assert sum(1 for _ in reader.iter_messages()) == 200


def test_rclpy_reads_our_messages() -> None:
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import JointState

    message = JointState(name=list(STATION.joint_names), position=STATION.home.tolist())
    message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id = 3, 5, "hold"
    ours = joint_state(3_000_000_005, STATION.joint_names, STATION.home, "hold")
    assert serialization.deserialize_message(ours, JointState) == message


def test_message_from_before_fields_were_added_at_its_end_is_read() -> None:
    whole = serialize(topics.EPISODE_TYPE, stamp_ns=5, id="one", state=1, seed=3, time_limit_s=15.0)
    # less `stage` and `message`: 4 + 1 (+ 3) + 4 + 1 bytes
    old = deserialize(whole[:-13], topics.EPISODE_TYPE)
    assert (old.id, old.state, old.seed, old.time_limit_s) == ("one", 1, 3, 15.0)
    assert (old.stage, old.message) == ("", "")
    with pytest.raises(SerdeError):
        deserialize(joint_state(5, ["a"], [0.0])[:-30], topics.JOINT_STATE_TYPE)


def test_namespace_is_in_the_file_and_not_in_the_reader(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", {"joint_states": topics.JOINT_STATE_TYPE}, namespace="/cell_1") as bag:
        bag.write("joint_states", 1, joint_state(1, ["a"], [0.0]))
    with AnyReader([tmp_path / "bag"]) as reader:
        assert list(reader.topics) == ["/cell_1/joint_states"]
    assert [name for name, _, _ in BagReader(tmp_path / "bag").messages()] == ["joint_states"]


def test_metadata_is_what_rosbag2_of_jazzy_reads(tmp_path: Path) -> None:
    """Every key that its decoder asks for, in the types it asks for; the embedded copy says the same."""
    write_bag(tmp_path / "bag")
    text = (tmp_path / "bag" / "metadata.yaml").read_text()
    found = yaml.safe_load(text)["rosbag2_bagfile_information"]
    assert "&" not in text and found["version"] == 9 and found["storage_identifier"] == "mcap"
    assert found["relative_file_paths"] == ["bag_0.mcap"] and found["ros_distro"] == "jazzy"
    assert found["compression_format"] == found["compression_mode"] == ""
    assert found["duration"]["nanoseconds"] == 99 * 20_000_000 + 1
    assert found["files"][0]["message_count"] == found["message_count"] == 200
    assert all(isinstance(value, str) for value in found["custom_data"].values())
    for topic in found["topics_with_message_count"]:
        [profile] = topic["topic_metadata"]["offered_qos_profiles"]
        assert profile["history"] == "keep_last" and profile["liveliness"] == "automatic"
        assert set(profile["deadline"]) == set(profile["lifespan"]) == {"sec", "nsec"}
        assert profile["avoid_ros_namespace_conventions"] is False
    with open(tmp_path / "bag" / "bag_0.mcap", "rb") as file:
        records = {record.name: record.metadata for record in make_reader(file).iter_metadata()}
    assert yaml.safe_load(records["rosbag2"]["serialized_metadata"]) == found


def test_type_hashes_are_those_of_the_installed_interfaces() -> None:
    share = [Path(p) / "share" for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    checked = 0
    for kind in set(RECORDED.values()):
        files = [folder / f"{kind}.json" for folder in share if (folder / f"{kind}.json").is_file()]
        for file in files[:1]:
            rows = json.loads(file.read_text())["type_hashes"]
            assert type_hash(kind) == next(row["hash_string"] for row in rows if row["type_name"] == kind)
            checked += 1
    if not checked:
        pytest.skip("no ROS 2 interfaces are installed here")
    assert checked == len(set(RECORDED.values()))


def test_bag_of_a_killed_recorder_can_be_given_an_outcome(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag", RECORDED, topics.LATCHED, namespace="cell_1")
    bag.set_metadata({"recap.episode": "killed", "recap.outcome": "unknown"})
    for tick in range(10):
        bag.write(topics.JOINT_COMMAND, tick, joint_state(tick, ["a"], [0.0]))
    bag.flush()  # and no close()
    assert [name for name, _, _ in BagReader(tmp_path / "bag").messages()] == [topics.JOINT_COMMAND] * 10
    amend_metadata(tmp_path / "bag", {"recap.outcome": "failure"})
    amended = BagReader(tmp_path / "bag")
    assert amended.metadata["recap.outcome"] == "failure" and amended.metadata["recap.episode"] == "killed"
    assert not amended.closed_cleanly and sum(1 for _ in amended.messages()) == 10
    described = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())
    by_name = {
        topic["topic_metadata"]["name"]: topic
        for topic in described["rosbag2_bagfile_information"]["topics_with_message_count"]
    }
    assert by_name["/cell_1/joint_command"]["message_count"] == 10
    [latched] = by_name["/cell_1/episode"]["topic_metadata"]["offered_qos_profiles"]
    assert latched["durability"] == "transient_local"


KILLED = """
import os, sys, time
sys.path[:0] = {path!r}
from recap_station.bags import BagWriter, joint_state
bag = BagWriter({bag!r}, {{"joint_states": "sensor_msgs/msg/JointState"}})
bag.set_metadata({{"recap.episode": "killed"}})
start = time.monotonic()
while True:
    bag.write("joint_states", time.time_ns(), joint_state(0, ["a"], [time.monotonic() - start]))
    print(time.monotonic() - start, flush=True)
    time.sleep(0.01)
"""


def test_killed_writer_loses_at_most_the_last_second(tmp_path: Path) -> None:
    code = KILLED.format(path=sys.path, bag=str(tmp_path / "bag"))
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    written = 0.0
    while written < 2.5:
        written = float(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    written = float((writer.stdout.read().split() or [written])[-1])
    writer.wait()
    bag = BagReader(tmp_path / "bag")
    assert not bag.closed_cleanly
    assert bag.metadata["recap.episode"] == "killed"
    found = [deserialize(cdr, bag.topics["joint_states"]).position[0] for _, _, cdr in bag.messages()]
    assert found[0] < 0.5 and found[-1] > written - 1.5
    assert found == sorted(found)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_file_cut_anywhere_reads_up_to_the_cut(tmp_path: Path, kept: float) -> None:
    write_bag(tmp_path / "bag", ticks=600)  # 2 MB: more than one chunk
    whole = list(BagReader(tmp_path / "bag").messages())
    file = tmp_path / "bag" / "bag_0.mcap"
    os.truncate(file, int(file.stat().st_size * kept))
    (tmp_path / "bag" / "metadata.yaml").unlink()
    bag = BagReader(tmp_path / "bag")
    found = list(bag.messages())
    assert not bag.closed_cleanly
    assert found == whole[: len(found)]
    assert len(found) > kept * len(whole) - 5 or kept > 0.9


def test_compressed_bag_of_another_recorder_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "other.mcap", "wb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start(profile="ros2")
        schema = writer.register_schema("sensor_msgs/msg/JointState", "ros2msg", b"")
        channel = writer.register_channel("/joint_states", "cdr", schema)
        writer.add_message(channel, 7, joint_state(7, ["a"], [1.0]), 7)
        writer.finish()
    bag = BagReader(tmp_path)
    assert [(name, time_ns) for name, time_ns, _ in bag.messages()] == [("joint_states", 7)]


def test_chunk_with_a_flipped_byte_is_left_out_and_told(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", ticks=1200)  # 4 MB: several chunks
    whole = list(BagReader(tmp_path / "bag").messages())
    file = tmp_path / "bag" / "bag_0.mcap"
    content = bytearray(file.read_bytes())
    content[content.index(bytes([200]) * 3000) + 1500] ^= 0xFF
    file.write_bytes(content)
    bag = BagReader(tmp_path / "bag")
    found = list(bag.messages())
    kept, lost = set(found), len(whole) - len(found)
    assert 0 < lost < 0.5 * len(whole)
    assert found == [message for message in whole if message in kept]
    assert "checksum" in bag.damage[0] and f"{lost} of {len(whole)} messages are lost" in bag.damage[1]


FULL = """
import resource, signal, sys
sys.path[:0] = {path!r}
from recap_station.bags import BagWriter, compressed_image
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
bag = BagWriter({bag!r}, {{"image": "sensor_msgs/msg/CompressedImage"}})
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
image = compressed_image(0, bytes(50_000))
try:
    for k in range(1000):
        bag.write("image", k, image)
except OSError as error:
    print("refused", k)
bag.close()
"""


def test_file_that_may_not_grow_keeps_what_is_there(tmp_path: Path) -> None:
    code = FULL.format(path=sys.path, bag=str(tmp_path / "bag"))
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    refused = int(output.split()[1])
    bag = BagReader(tmp_path / "bag")
    assert [time_ns for _, time_ns, _ in bag.messages()] == list(range(sum(1 for _ in bag.messages())))
    assert refused - 25 <= sum(1 for _ in bag.messages()) <= refused


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root"
)
def test_full_disk_still_closes_the_bag(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        bag = BagWriter(disk / "bag", {"image": topics.IMAGE_TYPE})
        image = compressed_image(0, bytes(50_000))
        with pytest.raises(OSError, match="No space"):
            for k in range(1000):
                bag.write("image", k, image)
        bag.set_metadata({"recap.reason": "disk full"})
        bag.close()
        reader = BagReader(disk / "bag")
        assert reader.closed_cleanly and reader.metadata["recap.reason"] == "disk full"
        assert [time_ns for _, time_ns, _ in reader.messages()] == list(range(bag.counts["image"]))
        assert bag.counts["image"] > 50
        with AnyReader([disk / "bag"]) as theirs:
            assert theirs.message_count == sum(1 for _ in theirs.messages()) == bag.counts["image"]
        del reader
        (disk / "filler").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="no room for a bag"):
            BagWriter(disk / "next", {"image": topics.IMAGE_TYPE})
        assert not (disk / "next").exists()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_mistakes_are_named(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", ticks=1)
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path / "bag", RECORDED)
    with pytest.raises(BagError, match=r"no \.mcap or \.db3 file"):
        BagReader(tmp_path / "nothing")
    with (
        BagWriter(tmp_path / "other", {"joint_states": topics.JOINT_STATE_TYPE}) as bag,
        pytest.raises(BagError, match="joint_command"),
    ):
        bag.write("joint_command", 0, b"")
    with pytest.raises(ContractError, match="no field 'outcomes'"):
        serialize(topics.EPISODE_TYPE, stamp_ns=0, outcomes=1)


def test_writing_keeps_up_with_many_times_real_time(tmp_path: Path) -> None:
    image = compressed_image(0, bytes(4000))
    start = time.perf_counter()
    with BagWriter(tmp_path / "bag", {"image": topics.IMAGE_TYPE}) as bag:
        for k in range(5000):
            bag.write("image", k, image)
    assert time.perf_counter() - start < 2.5  # 5000 messages are 12 s of a cell
