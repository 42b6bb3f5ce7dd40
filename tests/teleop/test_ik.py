"""Kinematics are the simulator's; the tip follows its twist, and no twist makes a joint break a limit."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recap_station.contract import ContractError, load_station, load_task, read_config
from recap_station.sim.cell import Cell
from recap_station.sim.model import build_model
from recap_teleop.ik import TipDriver
from recap_teleop.kinematics import Chain, load_chains

STATION = load_station("aloha")
TASK = load_task("handover_insert")
CHAINS = load_chains("aloha")
SPEED = STATION.max_velocity * STATION.step_s


def driver(arm: str = "left") -> TipDriver:
    return TipDriver(CHAINS[arm], STATION)


# --- kinematics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["left", "right"])
def test_stations_kinematics_are_those_of_the_simulated_arms(arm: str) -> None:
    model = build_model(STATION, TASK)
    data = mujoco.MjData(model)
    chain, rng = CHAINS[arm], np.random.default_rng(0)
    names = [STATION.joint_names[i] for i in chain.index]
    addresses = [model.joint(name).qposadr[0] for name in names]
    columns = [model.joint(name).dofadr[0] for name in names]
    site = model.site(f"{arm}_arm/tip").id
    for _ in range(20):
        joints = rng.uniform(STATION.lower[chain.index], STATION.upper[chain.index])
        data.qpos[addresses] = joints
        mujoco.mj_forward(model, data)
        moving, turning = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, moving, turning, site)
        tip, jacobian = chain.jacobian(joints)
        np.testing.assert_allclose(tip.position, data.site_xpos[site], atol=1e-9)
        np.testing.assert_allclose(tip.rotation, data.site_xmat[site].reshape(3, 3), atol=1e-9)
        np.testing.assert_allclose(jacobian, np.vstack([moving, turning])[:, columns], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arm: arm.pop("kinematics"), "arm 'left_' has no kinematics"),
        (lambda arm: arm["kinematics"].pop("elbow"), "elbow is missing or too much"),
        (lambda arm: arm["kinematics"]["elbow"].update(axis=[0, 0, 0]), "axis of elbow has no direction"),
        (lambda arm: arm["kinematics"]["elbow"].pop("axis"), "axis of elbow is None, wanted three numbers"),
        (lambda arm: arm["kinematics"]["tip"].update(xyz=[1, 2]), r"tip: xyz is \[1, 2\]"),
        (lambda arm: arm["kinematics"]["tip"].update(zyx=[1, 2, 3]), "wanted xyz, rpy"),
    ],
)
def test_wrong_kinematics_are_named(change: object, said: str, tmp_path: Path) -> None:
    data, _ = read_config("stations", "aloha")
    assert callable(change)
    change(data["arms"][0])
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ContractError, match=said):
        load_chains(tmp_path / "wrong.yaml")


# --- driving ------------------------------------------------------------------------------------------


def path(
    one: TipDriver, linear: np.ndarray, angular: np.ndarray, ticks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (ticks + 1, n) and tips (ticks + 1, 3) [m] along a twist."""
    joints = [one.joints.copy()]
    joints += [one.move(linear, angular) for _ in range(ticks)]
    return np.array(joints), np.array([one.chain.forward(q).position for q in joints])


def off_line(tips: np.ndarray, direction: np.ndarray) -> float:
    """Largest distance [m] from the line through the first tip."""
    away = tips - tips[0]
    unit = direction / np.linalg.norm(direction)
    return float(np.linalg.norm(away - np.outer(away @ unit, unit), axis=1).max())


LINES = [(0.1, 0.0, 0.0), (0.0, 0.1, 0.0), (0.0, 0.0, -0.1), (-0.06, 0.06, 0.05)]


@pytest.mark.parametrize("arm", ["left", "right"])
@pytest.mark.parametrize("linear", LINES)
def test_tip_goes_straight_and_does_not_turn(arm: str, linear: tuple[float, ...]) -> None:
    one = driver(arm)
    before = one.chain.forward(one.joints)
    _, tips = path(one, np.array(linear), np.zeros(3), 75)
    after = one.chain.forward(one.joints)
    assert off_line(tips, np.array(linear)) < 1e-5
    assert np.linalg.norm(tips[-1] - tips[0]) == pytest.approx(1.5 * np.linalg.norm(linear), abs=1e-4)
    np.testing.assert_allclose(after.rotation, before.rotation, atol=1e-4)


def test_tip_turns_on_the_spot() -> None:
    one = driver()
    before = one.chain.forward(one.joints)
    _, tips = path(one, np.zeros(3), np.array([0.0, 0.0, 0.5]), 50)
    after = one.chain.forward(one.joints)
    assert np.abs(tips - tips[0]).max() < 1e-5
    turned = after.rotation @ before.rotation.T
    assert np.arctan2(turned[1, 0], turned[0, 0]) == pytest.approx(0.5, abs=1e-4)


def test_simulated_arms_follow_a_straight_line_within_a_millimetre() -> None:
    """By the servos and the physics of the cell; both arms at once, in opposite directions."""
    cell = Cell(STATION, TASK)
    cell.reset(0)
    drivers = {arm: driver(arm) for arm in CHAINS}
    command = STATION.home
    for _ in range(50):
        cell.step(command)
    twists = {"left": np.array([0.03, 0.08, 0.04]), "right": np.array([0.03, -0.08, 0.04])}
    tips: dict[str, list[np.ndarray]] = {arm: [] for arm in CHAINS}
    for _ in range(100):
        for arm, one in drivers.items():
            command = command.copy()
            command[one.chain.index] = one.move(twists[arm], np.zeros(3))
            tips[arm].append(one.chain.forward(cell.state()[one.chain.index]).position)
        cell.step(command)
    for arm, twist in twists.items():
        away = np.array(tips[arm])
        assert np.linalg.norm(away[-1] - away[0]) > 0.15
        assert off_line(away, twist) < 1e-3


def test_too_fast_a_twist_goes_slower_along_the_same_line() -> None:
    one = driver()
    joints, tips = path(one, np.array([0.0, 5.0, 0.0]), np.zeros(3), 6)
    assert np.all(np.abs(np.diff(joints, axis=0)) <= SPEED[:6] + 1e-12)
    assert off_line(tips, np.array([0.0, 1.0, 0.0])) < 1e-3
    assert tips[-1][1] - tips[0][1] > 0.05


def test_past_a_wrist_that_is_aligned_the_tip_still_goes_straight() -> None:
    """Close by this singularity two joints must turn fast: at their limit, and no faster."""
    one = driver()
    one.place(np.array([0.0, -0.2, 0.36, 0.0, 0.3, 0.0]))
    joints, tips = path(one, np.array([0.0, 0.1, 0.0]), np.array([0.0, -0.6, 0.2]), 60)
    assert joints[0, 4] > 0.2 and joints[-1, 4] < -0.2
    fastest = np.abs(np.diff(joints, axis=0)).max(axis=0)
    assert np.all(fastest <= SPEED[:6] + 1e-12) and fastest[3] > 0.5 * SPEED[3]
    assert off_line(tips, np.array([0.0, 1.0, 0.0])) < 1e-3


def test_out_of_reach_it_stops_and_comes_back_at_once() -> None:
    """A stretched arm is singular: it stays within its speed, does not shake, and stores nothing up."""
    one = driver()
    joints, tips = path(one, np.array([0.3, 0.0, 0.15]), np.zeros(3), 200)
    assert np.all(np.abs(np.diff(joints, axis=0)) <= SPEED[:6] + 1e-12)
    assert np.abs(np.diff(tips[-50:], axis=0)).max() < 2e-3
    back, _ = path(one, np.array([-0.1, 0.0, -0.05]), np.zeros(3), 10)
    assert np.all(np.abs(np.diff(back, axis=0)) <= SPEED[:6] + 1e-12)
    assert one.chain.forward(back[-1]).position[0] < one.chain.forward(back[0]).position[0]


def test_hands_off_is_a_stop() -> None:
    one = driver()
    path(one, np.array([0.3, 0.0, 0.15]), np.zeros(3), 200)
    joints, _ = path(one, np.zeros(3), np.zeros(3), 20)
    assert np.all(joints == joints[0])


NUMBER = st.floats(-2.0, 2.0) | st.sampled_from([0.0, 1e-300, 1e-9, 50.0, -50.0])
TWIST = st.tuples(st.tuples(NUMBER, NUMBER, NUMBER), st.tuples(NUMBER, NUMBER, NUMBER))


def special(chain: Chain) -> list[np.ndarray]:
    """Where the arm is singular or at its limits: stretched, wrist aligned, waist over the tip."""
    lower, upper = STATION.lower[chain.index], STATION.upper[chain.index]
    stretched = np.array([0.0, 0.5, -np.pi / 2, 0.0, 0.0, 0.0])
    return [
        lower,
        upper,
        np.zeros(6),
        stretched,
        (lower + upper) / 2,
        np.array([1.0, -0.4, 1.2, 0.0, 0.0, 2.0]),
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 5),
    st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6) | st.none(),
    st.lists(st.tuples(TWIST, st.integers(1, 8)), min_size=1, max_size=6),
)
def test_no_twist_from_no_pose_breaks_a_limit(
    which: int, between: list[float] | None, twists: list[tuple[tuple, int]]
) -> None:
    one = driver()
    lower, upper = STATION.lower[:6], STATION.upper[:6]
    start = special(one.chain)[which] if between is None else lower + np.array(between) * (upper - lower)
    one.place(start)
    last = one.joints.copy()
    for (linear, angular), ticks in twists:
        for _ in range(ticks):
            joints = one.move(np.array(linear), np.array(angular))
            assert np.isfinite(joints).all()
            assert np.all((joints >= lower) & (joints <= upper))
            assert np.all(np.abs(joints - last) <= SPEED[:6] + 1e-12)
            last = joints
