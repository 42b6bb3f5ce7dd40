"""The arbiter's promises: always a safe command, the person within one tick, a fresh policy afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from recap_station.contract import load_station
from recap_teleop.arbiter import LOG_TICKS, Arbiter, ArbiterSettings, Command
from recap_teleop.modes import Event, Mode, State
from recap_teleop.sources import LockRow

STATION = load_station("aloha")
STEP = STATION.max_velocity * STATION.step_s
TICK = STATION.step_s
CHANGE = STATION.max_acceleration * TICK**2


class Cell:
    """Drives an arbiter at 50 Hz; the robot is wherever it was last told to be."""

    def __init__(self, locks: Sequence[LockRow] = (), **options: object) -> None:
        self.arbiter = Arbiter(STATION, ArbiterSettings(**options), locks)  # type: ignore[arg-type]
        self.arbiter.start(STATION.home)
        self.position = STATION.home.copy()
        self.now = 0.0
        self.commands: list[Command] = []

    def tick(
        self,
        policy: np.ndarray | None = None,
        teleop: np.ndarray | None = None,
        pedal: bool | None = None,
        ticks: int = 1,
    ) -> Command:
        for _ in range(ticks):
            self.now += TICK
            if pedal is not None:
                self.arbiter.pedal(self.now, pedal)
            if policy is not None:
                self.arbiter.policy(self.now, policy)
            if teleop is not None:
                self.arbiter.teleop(self.now, teleop)
            command = self.arbiter.tick(self.now, self.position)
            assert command is not None
            self.commands.append(command)
            self.position = command.positions
        return command


def near(offset: float) -> np.ndarray:
    return STATION.home + np.where(STATION.is_gripper, 0.0, offset)


def test_without_anything_measured_nothing_is_sent_and_then_the_measured_pose_is_held() -> None:
    arbiter = Arbiter(STATION)
    assert arbiter.tick(0.0, None) is None
    command = arbiter.tick(TICK, near(0.3))
    assert command is not None and command.source == "hold" and command.mode is Mode.HOLD
    np.testing.assert_array_equal(command.positions, near(0.3))


def test_policy_is_followed_after_its_first_fresh_command() -> None:
    cell = Cell()
    first = cell.tick()
    assert first.flush and first.mode is Mode.HANDOVER and first.source == "hold"
    command = cell.tick(policy=near(0.01))
    assert command.source == "policy" and command.mode is Mode.POLICY
    np.testing.assert_allclose(cell.tick(policy=near(0.01)).positions, near(0.01))


def test_press_hands_over_within_one_tick_and_release_waits_for_a_fresh_command() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=5, pedal=False)
    pressed = cell.tick(policy=near(0.0), teleop=near(0.02), pedal=True)
    assert pressed.source == "teleop"
    assert cell.tick(policy=near(0.0), teleop=near(0.02), pedal=True).mode is Mode.TELEOP
    # released: the command of that very tick was made before the flush
    released = cell.tick(policy=near(0.0), pedal=False)
    assert released.mode is Mode.HANDOVER and released.flush and released.source == "hold"
    waiting = cell.tick(pedal=False, ticks=10)
    assert waiting.source == "hold" and not waiting.flush
    np.testing.assert_array_equal(waiting.positions, released.positions)
    assert cell.tick(policy=near(0.01), pedal=False).source == "policy"


def test_commands_that_are_not_fresh_are_not_followed_after_a_hand_back() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=3)
    cell.tick(teleop=near(0.0), pedal=True, ticks=3)
    cell.tick(pedal=False)
    for _ in range(5):
        cell.now += TICK
        cell.arbiter.policy(cell.now, near(0.5), fresh=False)
        command = cell.arbiter.tick(cell.now, cell.position)
        assert command is not None and command.source == "hold"


def test_silent_policy_is_held_within_100_ms_and_followed_again_when_it_returns() -> None:
    cell = Cell()
    before = cell.tick(policy=near(0.1), ticks=20)
    quiet = [cell.tick() for _ in range(6)]
    assert quiet[-1].mode is Mode.HOLD and quiet[-1].source == "hold"
    np.testing.assert_array_equal(quiet[-1].positions, before.positions)
    cell.tick(policy=near(0.1), ticks=4)
    assert cell.arbiter.mode is Mode.POLICY


def test_silent_person_is_held_and_the_policy_does_not_take_over_a_pressed_pedal() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=3)
    cell.tick(policy=near(0.0), teleop=near(0.05), pedal=True, ticks=5)
    held = cell.tick(policy=near(0.0), pedal=True, ticks=30)
    assert held.mode is Mode.HOLD
    assert cell.tick(policy=near(0.0), teleop=near(0.05), pedal=True).source == "teleop"
    assert cell.tick(policy=near(0.0), pedal=False, ticks=3).mode is Mode.POLICY


@pytest.mark.parametrize("style", ["hold", "toggle"])
def test_silent_pedal_stops_the_person_and_the_policy_stays_out_until_it_is_heard(style: str) -> None:
    cell = Cell(pedal_style=style)
    cell.tick(policy=near(0.0), pedal=False, ticks=3)
    cell.tick(policy=near(0.0), teleop=near(0.05), pedal=True, ticks=5)
    held = cell.tick(policy=near(0.0), teleop=near(0.05), ticks=50)
    assert held.mode is Mode.HOLD and held.source == "hold"
    cell.tick(policy=near(0.0), pedal=False, ticks=5)
    assert cell.arbiter.state is (State.POLICY if style == "hold" else State.STOPPED)


def test_toggle_changes_over_with_each_press() -> None:
    cell = Cell(pedal_style="toggle")
    cell.tick(policy=near(0.0), pedal=False, ticks=3)
    cell.tick(policy=near(0.0), teleop=near(0.01), pedal=True, ticks=3)
    assert cell.tick(policy=near(0.0), teleop=near(0.01), pedal=False, ticks=10).mode is Mode.TELEOP
    cell.tick(policy=near(0.0), pedal=True, ticks=3)
    assert cell.tick(policy=near(0.0), pedal=False, ticks=3).mode is Mode.POLICY


def test_presses_shorter_than_a_tick_leave_nothing_open() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), pedal=False, ticks=3)
    for _ in range(7):
        cell.arbiter.pedal(cell.now + 0.001, True)
        cell.arbiter.pedal(cell.now + 0.002, False)
    cell.tick(policy=near(0.0), pedal=False, ticks=3)
    assert cell.arbiter.mode is Mode.POLICY


@pytest.mark.parametrize("bad", [np.full(14, np.nan), np.full(14, np.inf), np.zeros(13)])
def test_unusable_commands_are_rejected_counted_and_time_out(bad: np.ndarray) -> None:
    cell = Cell()
    before = cell.tick(policy=near(0.0), ticks=5)
    after = cell.tick(policy=bad)
    np.testing.assert_array_equal(after.positions, before.positions)
    assert after.source == "policy"  # one bad message is not yet silence
    assert cell.tick(policy=bad, ticks=10).mode is Mode.HOLD
    assert sum(cell.arbiter.sources["policy"].rejected.values()) == 11


def test_a_jump_is_walked_within_velocity_and_acceleration() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=3)
    start = cell.position
    command = cell.tick(policy=near(0.6))
    assert command.limited
    np.testing.assert_allclose(np.abs(command.positions - start), np.where(STATION.is_gripper, 0.0, CHANGE))
    for _ in range(20):
        before = cell.position
        cell.tick(policy=near(0.6))
        assert np.all(np.abs(cell.position - before) <= STEP + 1e-12)
    assert cell.arbiter.limited_ticks > 5
    assert not cell.tick(policy=near(0.6), ticks=10).limited
    np.testing.assert_allclose(cell.position, near(0.6))


def moving(cell: Cell) -> None:
    """Policy and arm are on their way, at 1.5 rad/s in the end."""
    far = 0.0
    for tick in range(15):
        far += min(0.003 * (tick + 1), 0.03)
        cell.tick(policy=near(far), pedal=False)


def test_hold_brakes_within_the_acceleration_and_an_emergency_stop_at_once() -> None:
    held = Cell()
    moving(held)
    steps = []
    for _ in range(12):
        before = held.position
        command = held.tick(pedal=False)
        steps.append(command.positions - before)
    assert command.mode is Mode.HOLD
    assert np.all(np.abs(np.diff(steps, axis=0)) <= CHANGE + 1e-12)
    assert not np.any(steps[-1])

    stopped = Cell()
    moving(stopped)
    before = stopped.position
    stopped.arbiter.event(Event.ESTOP, stopped.now)
    np.testing.assert_array_equal(stopped.tick(pedal=False).positions, before)


def test_clutch_that_is_pressed_in_motion_does_not_pull_the_arm_back() -> None:
    cell = Cell(handover="clutch")
    moving(cell)
    path = [cell.position]
    for _ in range(10):
        path.append(cell.tick(teleop=near(0.5), pedal=True).positions)
    arm = np.diff(path, axis=0)[:, ~STATION.is_gripper]
    assert arm[0].min() > 0.0 and arm.min() >= -1e-12  # it comes to rest ahead, and goes nowhere after
    assert not np.any(arm[-1])


def test_handover_is_slow_at_first_for_as_long_as_was_set() -> None:
    fastest = {}
    for seconds in (0.0, 2.0):
        cell = Cell(handover_speed=0.1, handover_s=seconds)
        cell.tick(policy=near(0.0), ticks=3)
        path = [cell.position]
        path += [cell.tick(teleop=near(1.0), pedal=True).positions for _ in range(15)]
        fastest[seconds] = np.abs(np.diff(path, axis=0) / STEP).max()
    assert fastest[0.0] == pytest.approx(1.0) and fastest[2.0] < 0.3


def test_clutch_starts_where_the_robot_is_and_follows_the_leaders_motion() -> None:
    cell = Cell(handover="clutch")
    cell.tick(policy=near(0.0), ticks=3)
    before = cell.position
    leader = near(0.5)
    pressed = cell.tick(teleop=leader, pedal=True)
    assert pressed.source == "teleop" and pressed.mode is Mode.TELEOP
    np.testing.assert_allclose(pressed.positions, before)
    moved = cell.tick(teleop=leader + np.where(STATION.is_gripper, -0.1, 0.02), pedal=True, ticks=5)
    np.testing.assert_allclose(moved.positions, before + np.where(STATION.is_gripper, -0.1, 0.02))


def test_slew_reaches_a_distant_leader_without_a_jump() -> None:
    cell = Cell(handover="slew")
    cell.tick(policy=near(0.0), ticks=3)
    for _ticks in range(100):
        before = cell.position
        command = cell.tick(teleop=near(0.5), pedal=True)
        assert np.all(np.abs(command.positions - before) <= STEP + 1e-12)
        assert command.source == "teleop"
        if command.mode is Mode.TELEOP:
            break
    assert 3 < _ticks < 40
    np.testing.assert_allclose(cell.tick(teleop=near(0.5), pedal=True, ticks=3).positions, near(0.5))


def test_estop_latches_and_its_release_is_guarded() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=3)
    cell.arbiter.event(Event.ESTOP, cell.now)
    held = cell.tick(policy=near(0.5), teleop=near(0.5), pedal=True, ticks=20)
    assert held.mode is Mode.ESTOP and held.source == "hold"
    assert not cell.arbiter.event(Event.RESUME, cell.now)
    assert not cell.arbiter.event(Event.RELEASE_ESTOP, cell.now)  # the pedal is pressed
    cell.tick(policy=near(0.0), pedal=False)
    cell.position = near(0.2)  # pushed by hand meanwhile
    cell.tick(policy=near(0.0), pedal=False)
    cell.position = near(0.2)
    cell.now += TICK
    cell.arbiter.tick(cell.now, near(0.2))
    assert cell.arbiter.event(Event.RELEASE_ESTOP, cell.now)
    command = cell.arbiter.tick(cell.now + TICK, near(0.2))
    assert command is not None and command.mode is Mode.HOLD
    np.testing.assert_allclose(command.positions, near(0.2))  # where it is, not where it was commanded
    assert cell.arbiter.event(Event.RESUME, cell.now)
    cell.position = near(0.2)
    cell.tick(policy=near(0.2), pedal=False, ticks=4)
    assert cell.arbiter.mode is Mode.POLICY


def test_outside_an_episode_the_policy_is_not_followed_and_a_reset_cell_is_not_dragged_back() -> None:
    cell = Cell()
    cell.tick(policy=near(0.4), ticks=30)
    cell.arbiter.episode(cell.now, False)
    assert cell.tick(policy=near(0.5), ticks=5).source == "hold"
    cell.position = STATION.home.copy()  # reset
    command = cell.tick(policy=near(0.5))
    np.testing.assert_array_equal(command.positions, STATION.home)
    cell.arbiter.episode(cell.now, True)
    assert cell.tick(policy=near(0.01), ticks=3).mode is Mode.POLICY


def test_a_pedal_still_pressed_when_the_episode_ends_must_be_pressed_again() -> None:
    cell = Cell()
    cell.tick(teleop=near(0.0), pedal=True, ticks=5)
    cell.arbiter.episode(cell.now, False)
    assert cell.tick(teleop=near(0.0), pedal=True, ticks=5).mode is Mode.HOLD
    cell.arbiter.episode(cell.now, True)
    assert cell.tick(policy=near(0.0), teleop=near(0.0), pedal=True, ticks=5).mode is Mode.POLICY


def test_lost_joint_states_hold() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=3)
    for _ in range(20):
        cell.now += TICK
        cell.arbiter.policy(cell.now, near(0.3))
        command = cell.arbiter.tick(cell.now, None)
    assert command is not None and command.mode is Mode.HOLD


def test_pedal_lock_keeps_the_policy_out_until_a_pedal_is_heard() -> None:
    cell = Cell(pedal_lock=True)
    assert cell.tick(policy=near(0.0), ticks=10).source == "hold"
    cell.tick(policy=near(0.0), pedal=False, ticks=5)
    assert cell.arbiter.mode is Mode.POLICY
    assert cell.tick(policy=near(0.0), ticks=20).mode is Mode.HOLD


LOCKED = LockRow("curtain", timeout_s=0.3)
DOOR = LockRow("door", timeout_s=0.3, priority=10)
LATCHED = LockRow("curtain", timeout_s=0.3, latch=True)


def test_a_lock_never_heard_silent_or_engaged_keeps_everybody_out() -> None:
    cell = Cell(locks=[LOCKED])
    assert cell.tick(policy=near(0.0), ticks=5).mode is Mode.HOLD  # never heard
    assert not cell.arbiter.event(Event.TAKE_OVER, cell.now)
    cell.arbiter.lock(cell.now, "curtain", False)
    assert cell.tick(policy=near(0.0), ticks=3).mode is Mode.POLICY
    assert cell.tick(policy=near(0.0), ticks=20).reason == "curtain silent"
    cell.arbiter.lock(cell.now, "curtain", False)
    cell.tick(teleop=near(0.0), pedal=True, ticks=3)
    assert cell.arbiter.mode is Mode.TELEOP
    cell.arbiter.lock(cell.now, "curtain", True)
    held = cell.tick(teleop=near(0.0), policy=near(0.0), pedal=True)
    assert held.mode is Mode.HOLD and held.reason == "curtain engaged"
    cell.arbiter.lock(cell.now, "curtain", False)  # the pedal is still down
    assert cell.tick(teleop=near(0.0), policy=near(0.0), pedal=True).source == "teleop"


def test_an_episode_that_starts_does_not_displace_a_person_who_waits_for_a_lock() -> None:
    cell = Cell(locks=[LOCKED])
    cell.arbiter.episode(cell.now, False)
    cell.tick(teleop=near(0.0), pedal=True, ticks=3)
    assert cell.arbiter.mode is Mode.HOLD
    cell.arbiter.lock(cell.now, "curtain", False)
    cell.arbiter.episode(cell.now, True)
    assert cell.tick(policy=near(0.0), teleop=near(0.0), pedal=True).source == "teleop"


def test_a_lock_of_low_priority_keeps_only_the_policy_out() -> None:
    cell = Cell(locks=[DOOR])
    assert cell.tick(policy=near(0.0), ticks=5).mode is Mode.HOLD
    assert cell.tick(policy=near(0.0), teleop=near(0.0), pedal=True, ticks=2).mode is Mode.TELEOP
    assert cell.tick(policy=near(0.0), pedal=False, ticks=5).mode is Mode.HOLD


def test_a_latched_lock_is_a_stop_that_a_person_ends_once_it_is_open() -> None:
    cell = Cell(locks=[LATCHED])
    cell.tick(policy=near(0.0), ticks=5)
    assert cell.arbiter.state is State.STOPPED
    assert not cell.arbiter.event(Event.RESUME, cell.now)
    assert cell.arbiter.refusal(Event.RESUME) == "curtain silent"
    cell.arbiter.lock(cell.now, "curtain", False)
    cell.tick(policy=near(0.0), ticks=2)
    assert cell.arbiter.state is State.STOPPED
    assert cell.arbiter.event(Event.RESUME, cell.now)
    assert cell.tick(policy=near(0.0), ticks=3).mode is Mode.POLICY


def test_episode_control_that_falls_silent_holds_the_policy_but_not_a_person() -> None:
    cell = Cell(episode_timeout_s=0.5)
    cell.arbiter.episode(cell.now, True, "one")
    assert cell.tick(policy=near(0.0), ticks=50).mode is Mode.POLICY  # has never repeated itself
    cell.arbiter.episode(cell.now, True, "one")
    held = cell.tick(policy=near(0.0), pedal=False, ticks=30)
    assert held.mode is Mode.HOLD and held.reason == "episode control silent"
    assert cell.tick(teleop=near(0.0), pedal=True, ticks=3).mode is Mode.TELEOP
    assert cell.tick(policy=near(0.0), pedal=False, ticks=3).mode is Mode.HOLD
    cell.arbiter.episode(cell.now, True, "one")
    assert cell.tick(policy=near(0.0), pedal=False, ticks=3).mode is Mode.POLICY


def test_the_log_is_bounded_and_tells_every_tick() -> None:
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=3)
    assert [(tick.source, tick.state) for tick in cell.arbiter.log] == [
        ("hold", State.HANDING_BACK), ("policy", State.POLICY), ("policy", State.POLICY)]  # fmt: skip
    cell.tick(ticks=LOG_TICKS + 10)
    assert len(cell.arbiter.log) == LOG_TICKS and cell.arbiter.log[-1].reason == "policy silent"


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="wanted one of slew, clutch"):
        ArbiterSettings(handover="jump")


def at_the_console() -> Cell:
    """A person at a console corrects, on a leader that goes on whatever becomes of the console."""
    cell = Cell()
    cell.tick(policy=near(0.0), ticks=5)
    cell.arbiter.console(cell.now, True)
    assert cell.arbiter.event(Event.TAKE_OVER, cell.now)
    for _ in range(50):  # longer than its time-out
        cell.tick(policy=near(0.0), teleop=near(0.02))
        cell.arbiter.console(cell.now, True)
    assert cell.arbiter.mode is Mode.TELEOP
    return cell


def test_a_console_that_falls_silent_in_a_takeover_stops_the_robot_until_a_person_resumes() -> None:
    cell = at_the_console()
    cell.tick(policy=near(0.0), teleop=near(0.02), ticks=26)
    assert cell.arbiter.state is State.STOPPED and cell.arbiter.reason == "console silent"
    cell.arbiter.console(cell.now, True)
    cell.tick(policy=near(0.0), teleop=near(0.02), ticks=50)
    assert cell.arbiter.state is State.STOPPED
    assert cell.arbiter.event(Event.RESUME, cell.now)
    cell.tick(policy=near(0.0), ticks=5)
    assert cell.arbiter.mode is Mode.POLICY


def test_a_console_that_has_let_go_may_be_silent() -> None:
    cell = at_the_console()
    assert cell.arbiter.event(Event.HAND_BACK, cell.now)
    cell.arbiter.console(cell.now, False)
    cell.tick(policy=near(0.0), ticks=100)
    assert cell.arbiter.mode is Mode.POLICY


def test_a_pedal_pressed_by_another_person_needs_no_console() -> None:
    cell = Cell()
    cell.arbiter.console(cell.now, True)
    cell.tick(policy=near(0.0), pedal=False, ticks=5)
    cell.tick(policy=near(0.0), teleop=near(0.0), pedal=True, ticks=100)
    assert cell.arbiter.mode is Mode.TELEOP
