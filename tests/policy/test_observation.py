"""An observation is whole and recent, or says what it lacks."""

from __future__ import annotations

import numpy as np

from recap_policy.observation import Observation, Observer
from recap_station.contract import load_station

STATION = load_station("aloha")


def test_an_observation_says_what_it_lacks_until_it_is_whole_and_then_how_old_it_is() -> None:
    observer = Observer(STATION, 0.5)
    first, *others = STATION.camera_names
    assert observer.observe(1.0) == "no joint_states yet"
    observer.state(STATION.home, 900, 1.0)
    assert observer.observe(1.0) == f"no image of {first} yet"
    for camera in (first, *others):
        observer.image(camera, b"old", 800, 1.1)
    observer.image(first, b"new", 850, 1.2)
    seen = observer.observe(1.3)
    assert isinstance(seen, Observation)
    assert seen.jpegs == {first: b"new", **dict.fromkeys(others, b"old")}
    assert np.array_equal(seen.state, STATION.home)
    assert (seen.stamp_ns, seen.received_s) == (800, 1.0)  # of the oldest parts
    assert observer.observe(1.55) == "joint_states is 0.55 s old, wanted at most 0.5 s"
    observer.state(STATION.home, 1000, 1.55)
    assert observer.observe(1.65) == f"{others[0]} is 0.55 s old, wanted at most 0.5 s"


def test_a_message_that_is_repeated_does_not_make_a_stream_alive() -> None:
    observer = Observer(STATION, 0.5)
    for now in (1.0, 2.0):
        observer.state(STATION.home, int(now * 1e9), now)
        for camera in STATION.camera_names:
            observer.image(camera, b"jpeg", 77 if camera == STATION.camera_names[1] else 0, now)
    assert observer.observe(2.0) == f"{STATION.camera_names[1]} is 1.00 s old, wanted at most 0.5 s"
