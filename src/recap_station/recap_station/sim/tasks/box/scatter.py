"""Random plausible scenes of the task, to learn to see on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recap_station.sim.arms import OPENING_M, Unreachable
from recap_station.sim.scatter import LEFT_WORKS, RIGHT_WORKS, Tip, arms_state
from recap_station.sim.script import up
from recap_station.sim.task import put_free_body
from recap_station.sim.tasks.box.scene import (
    CATCH,
    CAUGHT,
    CREASE,
    FLAPS,
    GRASP,
    HALF_Y,
    IN_HAND,
    LABEL,
    LABEL_AT,
    LATCH,
    LATCHED,
    MAT,
    MEMORY,
    ON_BOX,
    OPEN,
    RIB_HALF,
    RIB_Z,
    TALL,
    THIN,
    Flap,
)

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

_RIB = 2 * RIB_HALF / OPENING_M  # how far a hand is open around the rib


def scatter(cell: Cell, rng: np.random.Generator) -> None:
    """Sheet or box where an attempt has it, hands on the rib, at a flap, at the label or elsewhere."""
    props, model, data = cell.props, cell.model, cell.data
    props.place(model, data, rng)
    while True:
        folded = _folded(rng)
        pos, yaw = _box(rng, data.mocap_pos[0], max(folded.values()) > OPEN)
        memory = {**folded, "label": 0.0}
        left = _hand(rng, 0, pos, yaw, folded)
        if min(folded["front"], rng.random()) >= 0.5:
            memory |= {"label": ON_BOX, "pressed": 1.0}
        right = _hand(rng, 1, pos, yaw, folded)
        if memory["label"] != ON_BOX and rng.random() < 0.3:  # with the label, or about to have it
            taken = rng.random() < 0.7
            front = _place(pos, yaw, LABEL_AT[1], -HALF_Y - 0.03 - rng.exponential(0.04), 0.03)
            spot = rng.uniform(*RIGHT_WORKS) if rng.random() < 0.5 else front + up(rng.exponential(0.03))
            if not taken:
                spot = data.mocap_pos[1] - (rng.normal(0.0, 0.01), 0.012 + rng.exponential(0.03), 0.0)
            right = spot, rng.normal(0.0, 0.1), 0.0
            memory["label"] = IN_HAND if taken else 0.0
        if np.linalg.norm((left[0] - right[0])[:2]) < 0.05:
            continue
        try:
            state = arms_state(cell, [left, right], rng)
        except Unreachable:
            continue
        break
    cell.layout.put(data.qpos, state)
    put_free_body(model, data, "sheet", pos, yaw)
    for flap in FLAPS:
        data.qpos[model.joint(flap.name + "_flap").qposadr[0]] = _angle(rng, folded[flap.name])
    if memory["label"] == IN_HAND:
        side = np.array([-math.sin(right[1]), math.cos(right[1]), 0.0])
        put_free_body(model, data, "label", right[0] + 0.0115 * side, right[1])
    elif memory["label"] == ON_BOX:
        data.qpos[model.joint("front_flap").qposadr[0]] = 0.5 * math.pi
        off = rng.normal(0.0, 0.004, 2)
        place = _place(pos, yaw, LABEL_AT[1] + off[0], -HALF_Y - THIN - LABEL[1], LABEL_AT[0] + off[1])
        put_free_body(model, data, "label", place, yaw)
    props.memory = np.array([memory.get(name, 0.0) for name in MEMORY])


def _place(pos: np.ndarray, yaw: float, x: float, y: float, z: float) -> np.ndarray:
    """A point (3,) of the box's frame in the world."""
    c, s = math.cos(yaw), math.sin(yaw)
    return pos + np.array([c * x - s * y, s * x + c * y, z])


def _folded(rng: np.random.Generator) -> dict[str, float]:
    """What the flaps are: in an attempt they are folded one after the other."""
    done = int(rng.choice([0, 1, 2, 3, 4], p=[0.3, 0.1, 0.1, 0.15, 0.35]))
    return {
        flap.name: (LATCHED if rng.random() < 0.85 else CAUGHT) if i < done else OPEN
        for i, flap in enumerate(FLAPS)
    }


def _angle(rng: np.random.Generator, held: float) -> float:
    if held == LATCHED:
        return 0.5 * math.pi + rng.normal(0.0, 0.01)
    if held == CAUGHT:
        return rng.uniform(CATCH, LATCH)
    return CREASE - 0.04 + abs(rng.normal(0.0, 0.1)) if rng.random() < 0.8 else rng.uniform(CREASE, LATCH)


def _box(rng: np.random.Generator, crate: np.ndarray, folded: bool) -> tuple[np.ndarray, float]:
    where = rng.choice(
        ["start", "mat", "air", "crate"], p=[0, 0.6, 0.2, 0.2] if folded else [0.5, 0.3, 0.2, 0]
    )
    if where == "start":
        return np.array([rng.uniform(-0.21, -0.14), rng.uniform(-0.14, -0.05), THIN]), rng.normal(0.0, 0.2)
    if where == "mat":
        return MAT + rng.normal(0.0, 0.008, 3) * (1, 1, 0), rng.normal(0.0, 0.04)
    if where == "crate":
        return crate + rng.normal(0.0, 0.006, 3) * (1, 1, 0) + up(THIN), rng.normal(0.0, 0.02)
    share = rng.random()
    far = crate if folded else np.array([-0.17, -0.1, 0.0])
    pos = share * MAT + (1 - share) * far
    return np.append(pos[:2], rng.uniform(0.01, 0.05)), rng.normal(0.0, 0.1)


def _hand(rng: np.random.Generator, arm: int, pos: np.ndarray, yaw: float, folded: dict[str, float]) -> Tip:
    """A gripper on its half of the rib, above it, at a flap, or anywhere it works."""
    what = rng.random()
    rib = _place(pos, yaw, GRASP if arm else -GRASP, 0.0, RIB_Z)
    if what < 0.45:
        return rib + up(rng.uniform(-0.002, 0.006)), yaw, _RIB
    if what < 0.6:
        return rib + up(0.03 + rng.exponential(0.04)) + rng.normal(0.0, 0.008, 3), yaw, 1.0
    mine: list[Flap] = [flap for flap in FLAPS if flap.arm == arm and folded[flap.name] == OPEN]
    if mine and what < 0.85:
        flap = mine[int(rng.integers(len(mine)))]
        x, y = flap.pusher(TALL + rng.uniform(0.0, 0.03))
        return _place(pos, yaw, x, y, 0.02 + rng.exponential(0.03)), yaw, 0.0
    return rng.uniform(*(RIGHT_WORKS if arm else LEFT_WORKS)), rng.normal(0.0, 0.3), float(rng.random() < 0.7)
