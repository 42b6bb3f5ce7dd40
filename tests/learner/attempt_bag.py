"""A bag of one attempt of the default cell, without images, for tests of many bags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from recap_station import topics
from recap_station.bags import BagWriter
from recap_station.cdr import joint_state
from recap_station.contract import load_station, load_task

STATION, TASK = load_station("aloha"), load_task("handover_insert")
START = 1_700_000_000_000_000_000


def make_bag(path: Path, seed: int, ticks: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    positions = rng.normal(0, 0.3, (9, STATION.dof))
    states = [joint_state(0, STATION.joint_names, one, "policy") for one in positions]
    with BagWriter(path, topics.recorded_topics(STATION), topics.LATCHED) as bag:
        for tick in range(ticks):
            now = START + tick * 20_000_000
            stamp = np.array([now // 10**9, now % 10**9], "<u4").tobytes()
            cdr = states[tick % 9]
            for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND):
                bag.write(topic, now, cdr[:4] + stamp + cdr[12:])
        contract = {"recap.task": json.dumps(TASK.to_dict()), "recap.station": json.dumps(STATION.to_dict())}
        bag.set_metadata({**contract, "recap.outcome": "success"})
    return path
