"""Every kind of damage that the report knows is found where it is, and a clean episode has none."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from recap_learner.data.episodes import Cell, convert_bags
from recap_learner.data.inspection import KINDS, Limits, inspect_store, stretches
from recap_learner.data.store import Store
from recap_station import topics
from recap_station.bags import BagWriter, amend_metadata
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import load_station, load_task
from recap_station.streams import FLOAT_ARRAY_TYPE, RAW_IMAGE_TYPE, Streams

STATION, TASK = load_station("aloha"), load_task("handover_insert")
CAMERA = STATION.camera_names[1]
START, STEP, TICKS = 10**18, 20_000_000, 150


def attempt(
    folder: Path,
    name: str = "attempt",
    shade: int = 120,
    frozen: bool = False,
    every: int = 1,
    late_s: float = 0.0,
    pause: range = range(0),
    states_every: int = 1,
) -> Path:
    """A recording in which the waist swings; what is wrong with it concerns CAMERA or its states."""
    rng = np.random.default_rng(len(name))
    bag = folder / name
    with BagWriter(bag, topics.recorded_topics(STATION)) as writer:
        for tick in range(TICKS):
            now = START + tick * STEP
            position = STATION.home.copy()
            position[0] += 0.2 * np.sin(tick / 30) + len(name) / 1000
            for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
                if tick not in pause and (topic == topics.JOINT_COMMAND or tick % states_every == 0):
                    writer.write(topic, now, joint_state(now, STATION.joint_names, position, "policy"))
            for camera in STATION.camera_names:
                mine = camera == CAMERA
                if mine and tick % every:
                    continue
                noise = rng.integers(0, 1 if mine and (frozen or not shade) else 20, (48, 48, 3))
                picture = (noise + (shade if mine else 120)).astype(np.uint8)
                data = compressed_image(now, cv2.imencode(".jpg", picture)[1].tobytes(), camera)
                writer.write(topics.image_topic(camera), now + int((late_s if mine else 0.0) * 1e9), data)
        contract = {"recap.station": json.dumps(STATION.to_dict()), "recap.task": json.dumps(TASK.to_dict())}
        writer.set_metadata({**contract, "recap.outcome": "success"})
    return bag


def store_of(tmp_path: Path, **how) -> Store:
    _, problems = convert_bags([attempt(tmp_path / "bags", **how)], tmp_path / "store")
    assert not problems
    return Store(tmp_path / "store")


def found(store: Store) -> dict[str, str]:
    return {finding.kind: finding.text for finding in inspect_store(store).findings}


def test_a_clean_episode_has_no_finding(tmp_path):
    report = inspect_store(store_of(tmp_path))
    assert report.findings == ()
    [episode] = report.episodes
    assert episode.streams[topics.JOINT_STATES].rate_hz == pytest.approx(50.0)
    assert report.summary()["outcomes"] == {"success": 1}


def test_what_a_recording_lost_is_a_finding(tmp_path):
    store = store_of(tmp_path)
    episode = store.load("attempt")
    store.add(replace(episode, info=replace(episode.info, damage="2 chunks lost")))
    assert found(store)["damage"] == "2 chunks lost"


def test_an_episode_of_before_streams_were_kept_is_read_by_this_stacks_topics(tmp_path):
    store = store_of(tmp_path, pause=range(50, 90))
    episode = store.load("attempt")
    before = found(store)
    store.add(replace(episode, info=replace(episode.info, streams=None)))
    assert found(store) == before and "stall" in before


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ({"shade": 0}, "black", CAMERA),
        ({"frozen": True}, "frozen", f"{CAMERA}: 150 equal images in 2.98 s"),
        ({"every": 5}, "rate", f"{CAMERA} 10.0 Hz, wanted 30 Hz"),
        ({"states_every": 2}, "rate", "joint_states 25.0 Hz, wanted 50 Hz"),
        ({"late_s": 0.2}, "skew", "200 ms after its stamp"),
        ({"pause": range(50, 90)}, "stall", "nothing for 0.82 s"),
        ({"pause": range(50, 60)}, "gap", "3.3 % of the ticks"),
    ],
)
def test_what_is_wrong_with_a_recording_is_found(tmp_path, how, kind, text):
    seen = found(store_of(tmp_path, **how))
    assert text in seen[kind]
    assert set(seen) <= {kind, "gap", "frozen"}  # a black camera shows one picture; a pause is a gap


def test_what_is_wrong_with_the_numbers_is_found(tmp_path):
    store = store_of(tmp_path)
    episode = store.load("attempt")
    state, command = episode.state.copy(), episode.command.copy()
    state[80:, 2] += 0.9
    command[30, 4] = STATION.upper[4] + 0.1
    info = replace(episode.info, outcome="unknown")
    store.add(replace(episode, info=info, state=state, command=command))
    seen = found(store)
    assert set(seen) == {"jump", "limit", "unlabelled"}
    assert f"{STATION.joint_names[2]} at 1.60 s" in seen["jump"]
    assert f"{STATION.joint_names[4]} at 0.60 s" in seen["limit"]


def test_duplicates_and_lost_bags_are_found(tmp_path):
    store = store_of(tmp_path)
    episode = store.load("attempt")
    store.add(replace(episode, info=replace(episode.info, id="copy", bag="../bags/gone")))
    (store.folder / "bad.episode.parquet").write_bytes(b"?")
    report = inspect_store(store)
    assert [(f.kind, f.episode) for f in report.findings] == [
        ("duplicate", "copy"), ("unreadable", ""), ("unreadable", "copy")
    ]  # fmt: skip
    assert "gone" in report.findings[-1].text


def test_corrections_are_counted_by_stretch(tmp_path):
    store = store_of(tmp_path)
    episode = store.load("attempt")
    correction = np.zeros(TICKS, bool)
    correction[:25] = correction[100:110] = True
    store.add(replace(episode, correction=correction))
    summary = inspect_store(store).summary()
    assert (summary["corrections"], summary["corrected_episodes"]) == (2, 1)
    assert summary["corrected_share"] == pytest.approx(35 / TICKS)
    assert summary["correction_s"] == {"shortest": 0.2, "median": 0.35, "longest": 0.5}
    assert stretches(np.array([], bool)) == [] and stretches(np.ones(3, bool)) == [3]


def test_limits_are_settings(tmp_path):
    report = inspect_store(store_of(tmp_path, every=5), Limits(slow=0.2))
    assert report.findings == () and set(KINDS) >= {"rate"}


def test_streams_are_those_of_the_contract_not_this_stacks(tmp_path):
    """Others: states of two topics, commands without stamps, a raw camera, one placed by receipt."""
    names, bag = STATION.joint_names, tmp_path / "bags" / "theirs"
    first, second = STATION.camera_names[:2]
    recorded = {
        "left": topics.JOINT_STATE_TYPE,
        "right": topics.JOINT_STATE_TYPE,
        "goal": FLOAT_ARRAY_TYPE,
        "eye": RAW_IMAGE_TYPE,
        **{f"{camera}/jpeg": topics.IMAGE_TYPE for camera in STATION.camera_names[1:]},
    }
    with BagWriter(bag, recorded) as writer:
        for tick in range(TICKS):
            now = START + tick * STEP
            if tick not in range(60, 100):
                writer.write("left", now, joint_state(now, names[:7], STATION.home[:7]))
            writer.write("right", now, joint_state(now, names[7:], STATION.home[7:]))
            writer.write("goal", now, serialize(FLOAT_ARRAY_TYPE, data=np.array(STATION.home)))
            raw = {"height": 8, "width": 8, "encoding": "mono8", "step": 8}
            if tick % 4 == 0:
                pixels = np.full(64, 90 + tick % 50, np.uint8)
                writer.write("eye", now, serialize(RAW_IMAGE_TYPE, stamp_ns=now, data=pixels, **raw))
            for camera in STATION.camera_names[1:]:
                jpeg = cv2.imencode(".jpg", np.full((48, 48, 3), 90 + tick % 50, np.uint8))[1].tobytes()
                stamp = now - 10**12 if camera == second else now  # a clock that nobody set
                writer.write(f"{camera}/jpeg", now, compressed_image(stamp, jpeg, camera))
    given = {
        "state": [{"topic": "left"}, {"topic": "right"}],
        "command": {"topic": "goal", "joints": list(names)},
        "images": {
            first: {"topic": "eye"},
            **{camera: {"topic": f"{camera}/jpeg"} for camera in STATION.camera_names[1:]},
            second: {"topic": f"{second}/jpeg", "time": "receive"},
        },
    }
    cell = Cell(STATION, Streams.from_dict(given, STATION), TASK)
    amend_metadata(bag, {"recap.outcome": "success"})
    _, problems = convert_bags([bag], tmp_path / "store", cell=cell)
    assert not problems
    report = inspect_store(Store(tmp_path / "store"))
    assert set(report.episodes[0].streams) == set(recorded)
    texts = {finding.kind: finding.text for finding in report.findings}
    assert set(texts) == {"gap", "rate", "stall"}
    assert texts["rate"] == f"{first} 12.5 Hz, wanted 30 Hz" and texts["stall"].startswith(
        "left: nothing for 0.8"
    )
