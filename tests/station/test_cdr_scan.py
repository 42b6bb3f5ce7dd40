"""Fields straight from CDR bytes: as the typestore has them, in either byte order; errors on nonsense."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from recap_station import cdr_scan, topics
from recap_station.cdr import compressed_image, joint_state, serialize, typestore
from recap_station.cdr_scan import CdrError, Joints, JointStates
from recap_station.streams import FLOAT_ARRAY_TYPE, RAW_IMAGE_TYPE, TRAJECTORY_TYPE

STAMP = 1_700_000_001_000_000_007


def big_endian(cdr: bytes, kind: str) -> bytes:
    store = typestore()
    return bytes(store.serialize_cdr(store.deserialize_cdr(cdr, kind), kind, little_endian=False))


def numbers(joints: Joints) -> list[float]:
    return np.frombuffer(joints.values, "<f8").tolist()


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("label", ["", "policy", "teleop", "a frame of some length"])
def test_joint_states(label: str, swap: bool) -> None:
    reader = JointStates()
    for k in range(3):  # the second and third are read by what is known of the first
        cdr = joint_state(STAMP + k, ["a", "bcd", "ef"], [k, -1.5, 1e300], label)
        if swap:
            cdr = big_endian(cdr, topics.JOINT_STATE_TYPE)
        found = reader.read(memoryview(cdr))
        assert found[:3] == (STAMP + k, label, ("a", "bcd", "ef")) and numbers(found) == [k, -1.5, 1e300]
    other = reader.read(memoryview(joint_state(STAMP, ["a", "xyz", "ef"], [1, 2, 3], label)))
    assert other.names == ("a", "xyz", "ef")  # of the same length


def test_arrays_and_trajectories() -> None:
    types = typestore().types
    dim = types["std_msgs/msg/MultiArrayDimension"](label="row", size=2, stride=2)
    layout = types["std_msgs/msg/MultiArrayLayout"](dim=[dim], data_offset=0)
    array = serialize(FLOAT_ARRAY_TYPE, layout=layout, data=[0.5, -0.5])
    for cdr in (array, big_endian(array, FLOAT_ARRAY_TYPE)):
        assert numbers(cdr_scan.float_array(memoryview(cdr))) == [0.5, -0.5]
    point, duration = (types[f"{name}"] for name in (
        "trajectory_msgs/msg/JointTrajectoryPoint", "builtin_interfaces/msg/Duration",
    ))  # fmt: skip
    none, some = np.zeros(0), np.ones(1)
    points = [
        point(some * 3, none, none, none, duration(sec=0, nanosec=100)),
        point(some * 4, some, none, some, duration(sec=1, nanosec=200)),
        point(some * 5, none, some, none, duration(sec=2, nanosec=0)),
    ]
    cdr = serialize(TRAJECTORY_TYPE, stamp_ns=STAMP, joint_names=["a"], points=points)
    stamp, found = cdr_scan.joint_trajectory(memoryview(cdr))
    assert stamp == STAMP
    assert [(p.stamp_ns, numbers(p)) for p in found] == [(0, [3.0]), (100, [4.0]), (1_000_000_200, [5.0])]


def test_images_and_events() -> None:
    cdr = memoryview(compressed_image(STAMP, b"some bytes", "eye"))
    picture = cdr_scan.compressed_image(cdr)
    assert (picture.stamp_ns, picture.encoding) == (STAMP, "jpeg")
    assert bytes(cdr[picture.offset : picture.offset + picture.size]) == b"some bytes"
    fields = {"height": 2, "width": 3, "encoding": "mono8", "step": 4, "data": np.arange(8, dtype=np.uint8)}
    cdr = memoryview(serialize(RAW_IMAGE_TYPE, stamp_ns=STAMP, **fields))
    raw = cdr_scan.raw_image(cdr)
    assert (raw.height, raw.width, raw.step, raw.encoding) == (2, 3, 4, "mono8")
    assert bytes(cdr[raw.offset : raw.offset + raw.size]) == bytes(range(8))
    said = {"id": "7", "state": 2, "outcome": 1, "task": "t", "prompt": "p", "seed": -1, "reason": "r"}
    said["stage"] = "lift"
    event = cdr_scan.episode_event(memoryview(serialize(topics.EPISODE_TYPE, stamp_ns=STAMP, **said)))
    assert event._asdict() == {**said, "stamp_ns": STAMP, "checkpoint": ""}
    mode = serialize(topics.MODE_TYPE, stamp_ns=STAMP, mode=3, source="hold")
    assert cdr_scan.control_mode(memoryview(mode)) == (STAMP, 3, "hold")
    truth = serialize(topics.TRUTH_TYPE, stamp_ns=STAMP, stage="lift", qpos=np.zeros(9))
    assert cdr_scan.stage(memoryview(truth)) == (STAMP, "lift")


READERS = (
    JointStates().read, cdr_scan.float_array, cdr_scan.joint_trajectory, cdr_scan.compressed_image,
    cdr_scan.raw_image, cdr_scan.episode_event, cdr_scan.control_mode, cdr_scan.stage,
)  # fmt: skip


def test_nonsense_is_an_error_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    whole = joint_state(STAMP, ["a", "b"], [1.0, 2.0], "policy")
    for k in range(3000):
        if k % 2:
            data = whole[: rng.integers(0, len(whole))]
        else:
            data = b"\0\1\0\0" + rng.integers(0, 256, rng.integers(0, 60), dtype=np.uint8).tobytes()
            data += struct.pack("<I", 2**32 - 1)
        for read in READERS:
            try:
                read(memoryview(data))
            except CdrError as error:
                assert "\n" not in str(error)
    with pytest.raises(CdrError, match="not plain CDR"):
        cdr_scan.stage(memoryview(b"\0\7\0\0" + whole[4:]))
