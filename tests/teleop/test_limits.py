"""Limits at every tick: position, velocity and acceleration together, and no lag where none is needed."""

from __future__ import annotations

import numpy as np
import pytest

from recap_station.contract import load_station
from recap_teleop.limits import Limiter, braking_distance, fastest

STATION = load_station("aloha")
STEP = STATION.max_velocity * STATION.step_s
CHANGE = STATION.max_acceleration * STATION.step_s**2
EPS = 1e-12


def at_home() -> Limiter:
    limiter = Limiter(STATION)
    limiter.put(STATION.home)
    return limiter


def within(positions: list[np.ndarray]) -> None:
    path = np.array([positions[0], positions[0], *positions])
    assert np.all(path >= STATION.lower) and np.all(path <= STATION.upper)
    assert np.all(np.abs(np.diff(path, axis=0)) <= STEP + EPS)
    assert np.all(np.abs(np.diff(path, 2, axis=0)) <= CHANGE + EPS)


def test_fastest_step_is_the_one_whose_braking_fills_the_room_exactly() -> None:
    rng = np.random.default_rng(0)
    brake = rng.uniform(0.001, 0.1, 20_000)
    room = brake * 10.0 ** rng.uniform(-3, 4, 20_000)
    np.testing.assert_allclose(braking_distance(fastest(room, brake), brake), room, rtol=1e-9)
    # by hand: steps 3, 2, 1 cover 6; 2.5, 1.5, 0.5 cover 4.5; nothing covers nothing
    np.testing.assert_allclose(fastest(np.array([6.0, 4.5, 0.0]), np.ones(3)), [3.0, 2.5, 0.0])


def test_target_that_moves_within_the_limits_is_followed_without_lag() -> None:
    limiter = at_home()
    for tick in range(200):
        swing = 0.3 * (1 - np.cos(2 * np.pi * 0.8 * tick * STATION.step_s))  # up to 1.5 rad/s
        target = STATION.home - np.where(STATION.is_gripper, 0.5, 1.0) * swing
        np.testing.assert_allclose(limiter.follow(target), target, atol=1e-9)


def test_jump_is_reached_without_overshoot_and_then_held() -> None:
    limiter = at_home()
    goal = STATION.home + np.where(STATION.is_gripper, -0.8, 0.5)
    path = [STATION.home, *(limiter.follow(goal).copy() for _ in range(40))]
    within(path)
    assert np.all((np.array(path) - goal) * np.sign(STATION.home - goal) >= -EPS)
    np.testing.assert_allclose(path[25], goal)  # 0.5 rad at 3 rad/s, and 0.1 s each way to full speed
    np.testing.assert_array_equal(path[-1], path[-2])


def test_braking_begins_in_time_before_the_end_of_a_joint() -> None:
    limiter = at_home()
    path = [STATION.home]
    for _ in range(120):  # the source runs into the stop at full speed, and past it
        path.append(limiter.follow(path[-1] + 2 * STEP).copy())
    within(path)
    np.testing.assert_allclose(path[-1], STATION.upper)


def test_brake_is_a_ramp_that_ends_where_resting_said() -> None:
    limiter = at_home()
    path = [STATION.home]
    for _ in range(10):
        path.append(limiter.follow(path[-1] - STEP).copy())
    resting = limiter.resting
    path += [limiter.brake().copy() for _ in range(10)]
    within(path)
    np.testing.assert_allclose(path[-1], resting)
    np.testing.assert_array_equal(path[-1], path[-2])


def test_halt_repeats_the_last_command_at_once() -> None:
    limiter = at_home()
    for _ in range(5):
        before = limiter.follow(STATION.home + 1.0).copy()
    limiter.halt()
    np.testing.assert_array_equal(limiter.sent, before)
    np.testing.assert_array_equal(limiter.brake(), before)


@pytest.mark.parametrize("seed", range(20))
def test_limits_hold_for_any_targets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limiter = at_home()
    path, target = [STATION.home], STATION.home
    for _ in range(500):
        match rng.integers(4):
            case 0:
                target = rng.uniform(-4, 4, STATION.dof) * 10 ** rng.uniform(-2, 2)
            case 1:
                target = path[-1] + rng.normal(0, 1, STATION.dof) * STEP
            case 2:
                target = target + rng.choice([-1, 1], STATION.dof) * STEP
        speed = float(rng.choice([1.0, 0.5, 0.05]))
        path.append((limiter.brake() if rng.random() < 0.1 else limiter.follow(target, speed)).copy())
    within(path)
