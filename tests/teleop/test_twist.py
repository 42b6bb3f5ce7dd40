"""Twists drive whole arms through the real arbiter: without a jump, and not at all once one is silent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recap_station.contract import ContractError, load_station
from recap_teleop.arbiter import Arbiter
from recap_teleop.kinematics import load_chains
from recap_teleop.twist import TwistSettings, TwistTeleop

STATION = load_station("aloha")
CHAINS = load_chains("aloha")
STEP = STATION.max_velocity * STATION.step_s
STILL = (0.0, 0.0, 0.0)
LEFT, RIGHT, GRIPPER = CHAINS["left"], CHAINS["right"], 6


class Rig:
    """Arbiter and twists, tick by tick; the robot is where it is commanded, the policy waves its arms."""

    def __init__(self, arms: tuple[str, ...] = (), frame: str = "station"):
        self.teleop = TwistTeleop(STATION, CHAINS, arms, TwistSettings(frame=frame))
        self.arbiter = Arbiter(STATION)
        self.arbiter.start(STATION.home, 0.0)
        self.now = 0.0
        self.sent = STATION.home
        self.source = "hold"
        self.twists: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = dict.fromkeys(
            self.teleop.arms, (STILL, STILL)
        )

    def run(self, ticks: int, pressed: bool) -> np.ndarray:
        """→ (ticks + 1, dof) commands, the one before included."""
        commands = [self.sent]
        for _ in range(ticks):
            self.now += STATION.step_s
            for arm, (linear, angular) in self.twists.items():
                self.teleop.hear(arm, self.now, linear, angular)
            wave = 0.3 * np.sin(3.0 * self.now) * ~STATION.is_gripper
            self.arbiter.policy(self.now, STATION.home + wave)
            self.arbiter.pedal(self.now, pressed)
            command = self.teleop.tick(self.now)
            if command is not None:
                self.arbiter.teleop(self.now, command)
            out = self.arbiter.tick(self.now, self.sent)
            assert out is not None
            self.sent, self.source = out.positions, out.source
            self.teleop.follow(self.now, self.sent, out.source == "teleop")
            commands.append(self.sent)
        return np.array(commands)


def tips(commands: np.ndarray, arm: str = "left") -> np.ndarray:
    return np.array([CHAINS[arm].forward(row[CHAINS[arm].index]).position for row in commands])


def test_takeover_begins_where_the_arms_are_and_goes_straight_from_there() -> None:
    rig = Rig()
    rig.run(60, False)
    assert rig.source == "policy"
    rig.twists["left"] = ((0.0, 0.1, 0.0), STILL)
    taken = rig.run(50, True)
    assert rig.source == "teleop"
    assert np.all(np.abs(np.diff(taken, axis=0)) <= STEP + 1e-12)
    assert np.abs(np.diff(taken, axis=0)).max() < 0.03  # far from what a jump to anywhere else would be
    tip = tips(taken[10:])  # from when the policy's motion has ended
    away = tip - tip[0]
    assert np.abs(away[:, [0, 2]]).max() < 1e-3
    assert away[-1, 1] == pytest.approx(0.1 * 40 * STATION.step_s, abs=2e-3)
    assert np.all(taken[10:, RIGHT.index] == taken[10, RIGHT.index])


def test_release_and_the_next_takeover_begin_anew() -> None:
    rig = Rig()
    rig.run(30, False)
    rig.twists["left"] = ((0.0, 0.2, 0.0), STILL)
    rig.run(30, True)
    rig.run(60, False)
    assert rig.source == "policy"
    rig.twists["left"] = (STILL, STILL)
    taken = rig.run(30, True)
    assert np.abs(taken[-1] - taken[0]).max() < 0.05  # not where the first takeover ended


def test_silence_of_one_arm_ends_commands_and_the_arbiter_holds() -> None:
    rig = Rig()
    rig.run(10, False)
    rig.twists = {arm: ((0.0, 0.1, 0.0), STILL) for arm in rig.twists}
    rig.run(20, True)
    assert rig.source == "teleop"
    del rig.twists["right"]
    rig.run(25, True)
    assert rig.source == "hold" and rig.teleop.silent(rig.now) == "twist of right silent for 0.5 s"
    held = rig.run(20, True)
    assert np.all(held == held[0])
    rig.twists["right"] = (STILL, STILL)
    again = rig.run(20, True)
    assert rig.source == "teleop" and np.all(np.abs(np.diff(again, axis=0)) <= STEP + 1e-12)


def test_one_device_drives_one_arm() -> None:
    rig = Rig(("right",))
    rig.run(10, False)
    rig.twists["right"] = ((0.0, 0.0, 0.1), STILL)
    taken = rig.run(30, True)
    assert rig.source == "teleop"
    assert tips(taken, "right")[-1, 2] - tips(taken, "right")[10, 2] > 0.03
    assert np.all(taken[10:, LEFT.index] == taken[10, LEFT.index])


@pytest.mark.parametrize(("frame", "sign"), [("station", 1.0), ("base", -1.0)])
def test_frame_of_the_twists_is_chosen(frame: str, sign: float) -> None:
    rig = Rig(frame=frame)
    rig.run(10, False)
    rig.twists["right"] = ((0.0, 0.1, 0.0), STILL)  # the right arm's base is turned round
    tip = tips(rig.run(30, True), "right")
    assert sign * (tip[-1, 1] - tip[10, 1]) > 0.03


def test_tip_frame_moves_along_the_fingers() -> None:
    rig = Rig(frame="tip")
    rig.run(10, False)
    rig.twists["left"] = ((0.1, 0.0, 0.0), STILL)
    taken = rig.run(30, True)
    away = tips(taken)[-1] - tips(taken)[10]
    fingers = LEFT.forward(taken[10][LEFT.index]).rotation[:, 0]
    assert away @ fingers == pytest.approx(np.linalg.norm(away), abs=1e-4)


def test_gripper_moves_by_a_button_while_held_and_by_an_opening_once_it_is_changed() -> None:
    rig = Rig()
    rig.teleop.hear_opening("left", 0.0)  # a trigger at rest; the gripper is open
    rig.run(10, False)
    assert rig.run(20, True)[-1][GRIPPER] == 1.0
    rig.teleop.hear_squeeze("left", rig.now, True, False)
    rig.run(5, True)
    closing = rig.sent[GRIPPER]
    assert closing < 0.95
    rig.teleop.hear_squeeze("left", rig.now, False, False)
    rig.run(10, True)
    assert 0.5 < rig.sent[GRIPPER] <= closing
    rig.teleop.hear_opening("left", 0.4)
    rig.run(30, True)
    assert rig.sent[GRIPPER] == pytest.approx(0.4)
    assert rig.sent[13] == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_wrong_twists_and_openings_are_refused_and_keep_nobody_alive(value: float) -> None:
    rig = Rig()
    rig.run(10, False)
    with pytest.raises(ContractError, match="twist of left is not finite"):
        rig.teleop.hear("left", rig.now + 1.0, (value, 0.0, 0.0), STILL)
    with pytest.raises(ContractError, match="wanted 0 closed"):
        rig.teleop.hear_opening("left", value)
    assert rig.teleop.silent(rig.now + 1.0)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ContractError, match="no arm 'middle'"):
        TwistTeleop(STATION, CHAINS, ("middle",))
    with pytest.raises(ContractError, match="frame is 'world'"):
        TwistSettings(frame="world")


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
            st.floats(0.0, 1.0) | st.none(),
            st.integers(1, 12),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_is_asked_for_the_robot_keeps_its_limits(
    parts: list[tuple[bool, list[float], float | None, int]],
) -> None:
    rig = Rig()
    for pressed, twist, opening, ticks in parts:
        rig.twists["left"] = (tuple(twist[:3]), tuple(twist[3:]))
        if opening is not None:
            rig.teleop.hear_opening("left", opening)
        commands = rig.run(ticks, pressed)
        assert np.isfinite(commands).all()
        assert np.all((commands >= STATION.lower) & (commands <= STATION.upper))
        assert np.all(np.abs(np.diff(commands, axis=0)) <= STEP + 1e-12)
