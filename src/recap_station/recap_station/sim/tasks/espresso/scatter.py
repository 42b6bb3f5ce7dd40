"""Random plausible scenes of the task, to learn to see on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recap_station.sim.arms import OPENING_M, Unreachable
from recap_station.sim.scatter import LEFT_WORKS, RIGHT_WORKS, Tip, arms_state
from recap_station.sim.script import up
from recap_station.sim.task import put_free_body
from recap_station.sim.tasks.espresso.scene import GRASP, GROUP, HALF, KNOB, MAT, MEMORY, SPOUT, TURN

if TYPE_CHECKING:
    from recap_station.sim.cell import Cell

_BAR, _KNOB = 2 * HALF / OPENING_M, 0.028 / OPENING_M  # how far a hand is open around a handle, a knob


def scatter(cell: Cell, rng: np.random.Generator) -> None:
    """Portafilter, tamper and cup where an attempt takes them, hands on them, near them or elsewhere."""
    props, model, data = cell.props, cell.model, cell.data
    props.place(model, data, rng)
    while True:
        basket, basket_yaw, held, memory = _filter(rng)
        cup, cup_yaw, cup_held = _cup(rng)
        tamper, tamper_held = _tamper(rng, basket)
        tips = [
            _hand(rng, _grasp(basket, basket_yaw), basket_yaw, _BAR, held, LEFT_WORKS),
            _hand(rng, tamper + up(KNOB), 0.0, _KNOB, True, RIGHT_WORKS)
            if tamper_held and not cup_held
            else _hand(rng, _grasp(cup, cup_yaw), cup_yaw, _BAR, cup_held, RIGHT_WORKS),
        ]
        if np.linalg.norm((tips[0][0] - tips[1][0])[:2]) < 0.08:
            continue
        if tamper_held and cup_held:
            tamper = np.array([rng.uniform(0.05, 0.10), rng.uniform(-0.13, -0.09), 0.0])
        try:
            state = arms_state(cell, tips, rng)
        except Unreachable:
            continue
        break
    cell.layout.put(data.qpos, state)
    put_free_body(model, data, "filter", basket, basket_yaw, rng.normal(0.0, 0.03) if held else 0.0)
    put_free_body(model, data, "cup", cup, cup_yaw)
    put_free_body(model, data, "tamper", tamper, 0.0)
    props.memory = np.array([memory.get(name, 0.0) for name in MEMORY])
    props.show(model)  # type: ignore[attr-defined]


def _grasp(pos: np.ndarray, yaw: float) -> np.ndarray:
    return pos - GRASP * np.array([math.cos(yaw), math.sin(yaw), 0.0])


def _filter(rng: np.random.Generator) -> tuple[np.ndarray, float, bool, dict[str, float]]:
    """Place and heading of the portafilter, whether a hand is at it, and what is in it."""
    where = rng.choice(["table", "air", "spout", "mat", "head"], p=[0.25, 0.2, 0.15, 0.2, 0.2])
    shake = rng.normal(0.0, 0.006, 3) * (1, 1, 0)
    if where == "table":
        pos = np.array([rng.uniform(-0.17, -0.09), rng.uniform(-0.2, -0.12), HALF])
        return pos, rng.normal(0.0, 0.25), bool(rng.random() < 0.3), {}
    if where == "air":
        pos = rng.uniform([-0.18, -0.16, 0.04], [0.0, 0.16, 0.13])
        return pos, rng.uniform(-0.2, 0.9), True, {"dose": float(rng.random() < 0.5)}
    if where == "spout":
        return np.append(SPOUT[:2], 0.10) + 2 * shake, 0.9, True, {"dose": float(rng.random())}
    dose = {"dose": rng.uniform(0.5, 1.0)}
    if where == "mat":
        return MAT + shake, rng.normal(0.0, 0.05), True, {**dose, "tamp": float(rng.random())}
    turn = rng.uniform(0.0, TURN + 0.1)
    inside = {**dose, "tamp": 1.0, "engaged": 1.0, "locked": float(turn > TURN)}
    return GROUP - up(HALF + 0.005) + 0.3 * shake, 0.35 + turn, bool(turn < TURN), inside


def _cup(rng: np.random.Generator) -> tuple[np.ndarray, float, bool]:
    where = rng.choice(["table", "air", "tray", "saucer"], p=[0.4, 0.2, 0.2, 0.2])
    held = bool(rng.random() < 0.3)
    if where == "table":
        return np.array([rng.uniform(0.12, 0.19), rng.uniform(0.02, 0.09), HALF]), rng.uniform(2.8, 3.5), held
    if where == "air":
        pos = rng.uniform([0.02, -0.12, 0.02], [0.2, 0.18, 0.08])
        return pos, rng.uniform(2.3, 3.3), True
    if where == "tray":
        return np.append(GROUP[:2] + rng.normal(0.0, 0.008, 2), HALF), rng.normal(2.3, 0.05), held
    return np.array([rng.uniform(0.18, 0.24), rng.uniform(-0.11, -0.05), HALF]), rng.normal(2.5, 0.1), held


def _tamper(rng: np.random.Generator, basket: np.ndarray) -> tuple[np.ndarray, bool]:
    if rng.random() < 0.6:
        return np.array([rng.uniform(0.04, 0.11), rng.uniform(-0.14, -0.08), 0.0]), False
    if basket[2] < 0.03 and rng.random() < 0.6:
        return MAT + np.array([*rng.normal(0.0, 0.004, 2), rng.uniform(-0.008, 0.05)]), True
    return rng.uniform([0.04, -0.12, 0.0], [0.12, -0.02, 0.1]), True


def _hand(
    rng: np.random.Generator,
    spot: np.ndarray,
    yaw: float,
    closed: float,
    held: bool,
    works: tuple[list[float], list[float]],
) -> Tip:
    """A gripper on `spot`, near it, or anywhere it works."""
    if held:
        return spot + up(rng.uniform(-0.003, 0.006)), yaw, closed
    opening = 1.0 if rng.random() < 0.7 else rng.uniform(0.0, 1.0)
    if rng.random() < 0.5:
        return spot + rng.normal(0.0, 0.02, 3) + up(0.02 + rng.exponential(0.05)), yaw, opening
    return rng.uniform(*works), rng.normal(0.0, 0.3), opening
