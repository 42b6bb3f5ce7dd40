"""Leader arms: what is heard becomes a command joint by joint, and nothing stale or wrong ever does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_station.contract import ContractError, load_station
from recap_teleop.leader import Leader, Mirror, Row, identity, load_rows

STATION = load_station("aloha")
NAMES = list(STATION.joint_names)
SECOND = 1_000_000_000


def heard(leader: Leader, now_s: float, positions: np.ndarray, names: list[str] = NAMES) -> bool:
    ns = int(now_s * 1e9) + 1_700_000_000 * SECOND
    return leader.hear(now_s, ns, ns, names, positions.tolist())


@pytest.fixture
def leader() -> Leader:
    return Leader(STATION, identity(STATION))


def test_example_is_a_leader_and_its_rows_come_in_the_stations_order() -> None:
    rows = load_rows("example", STATION)
    assert [row.joint for row in rows] == NAMES
    assert rows[2].scale == -1.0 and rows[6] == Row("left_gripper", "left_trigger", -1.25, 1.0)


@pytest.mark.parametrize(
    ("joints", "said"),
    [
        ("- {joint: left_waist}", "joint 'left_shoulder' is missing"),
        ("- {joint: left_waste}", "unknown joint 'left_waste', did you mean 'left_waist'"),
        ("- {joint: left_waist, scale: 0}", "a scale not 0"),
        ("- {joint: left_waist, offset: .nan}", "wanted finite"),
        ("- {joint: left_waist, skale: 1}", "not a leader"),
        ("- {joint: left_waist}\n- {joint: left_elbow, leader: left_waist}", "'left_waist' stands twice"),
        ("- {joint: left_waist}\n- {joint: left_waist, leader: b}", "is missing"),
    ],
)
def test_wrong_rows_are_named(joints: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(f"joints:\n{joints}\n")
    with pytest.raises(ContractError, match=said):
        load_rows(str(file), STATION)


def test_scale_and_offset_lead_there_and_back() -> None:
    leader = Leader(STATION, load_rows("example", STATION))
    own = np.linspace(-0.5, 0.7, 14)
    names = list(leader.names)
    order = list(reversed(range(14)))  # whatever order a driver has
    assert heard(leader, 1.0, own[order], [names[i] for i in order])
    command = leader.command(1.0)
    assert command is not None
    assert command[2] == -own[2] and command[6] == pytest.approx(1.0 - 1.25 * own[6])
    np.testing.assert_allclose(leader.of_follower(command), own, atol=1e-12)


def test_two_drivers_may_each_have_an_arm_and_one_alone_commands_nothing(leader: Leader) -> None:
    assert heard(leader, 1.0, np.zeros(7), NAMES[:7])
    assert leader.command(1.0) is None
    assert leader.silent(1.0) == "right_waist never heard (7 joints in all)"
    assert heard(leader, 1.0, np.ones(7), NAMES[7:])  # of the same moment as the other's
    assert leader.command(1.05) is not None
    assert heard(leader, 1.2, np.zeros(7), NAMES[:7])
    assert leader.command(1.2) is None
    assert leader.silent(1.2) == "right_waist silent for 0.20 s (7 joints in all)"


def test_further_joints_are_left_alone_and_named(leader: Leader) -> None:
    assert heard(leader, 1.0, np.zeros(15), [*NAMES, "left_finger"])
    assert leader.command(1.0) is not None and leader.ignored == {"left_finger"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_message_that_is_not_finite_is_refused_whole(leader: Leader, value: float) -> None:
    assert heard(leader, 1.0, np.zeros(14))
    wrong = np.ones(14)
    wrong[3] = value
    assert not heard(leader, 1.02, wrong)
    command = leader.command(1.05)
    assert command is not None and not command.any() and leader.rejected["not finite"] == 1
    assert leader.command(1.11) is None  # and does not keep the leader alive


@pytest.mark.parametrize(
    ("age_s", "reason"),
    [
        (0.0, "stamp repeated"),
        (0.01, "stamp older than the one before"),
        (3.0, "stamp more than 0.5 s from now"),
        (-3.0, "stamp more than 0.5 s from now"),
    ],
)
def test_stale_message_is_refused(leader: Leader, age_s: float, reason: str) -> None:
    now_ns = 1_700_000_000 * SECOND
    assert leader.hear(1.0, now_ns, now_ns, NAMES, [0.0] * 14)
    assert not leader.hear(1.02, now_ns, now_ns - int(age_s * 1e9), NAMES, [1.0] * 14)
    assert leader.rejected[reason] == 1
    assert not leader.hear(1.02, now_ns, 0, NAMES, [1.0] * 14)
    assert leader.rejected["not stamped"] == 1


def test_clock_that_is_set_back_silences_nobody(leader: Leader) -> None:
    now_ns = 1_700_000_000 * SECOND
    assert leader.hear(1.0, now_ns, now_ns, NAMES, [0.0] * 14)
    assert leader.hear(1.02, now_ns - 60 * SECOND, now_ns - 60 * SECOND, NAMES, [0.5] * 14)
    assert leader.command(1.02) is not None


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 0.3),
            st.integers(-SECOND, SECOND),
            st.lists(st.sampled_from([*NAMES, "elsewhere"]), max_size=16),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=30,
    )
)
def test_whatever_arrives_a_command_is_finite_and_fresh(
    messages: list[tuple[float, int, list[str], float]],
) -> None:
    leader = Leader(STATION, identity(STATION))
    now, clock = 0.0, 1_700_000_000 * SECOND
    for wait_s, age_ns, names, value in [*messages, (1.1, 0, NAMES, 0.5)]:
        now, clock = now + wait_s, clock + int(wait_s * 1e9) + 1
        leader.hear(now, clock, clock - age_ns, names, [value] * len(names))
        command = leader.command(now)
        assert command is None or np.isfinite(command).all()
    assert leader.command(now) is not None
    assert leader.command(now + 0.11) is None


def test_mirror_walks_the_leader_to_the_follower_and_starts_anew_after_a_takeover() -> None:
    leader = Leader(STATION, load_rows("example", STATION))
    mirror = Mirror(leader, speed=0.5)
    follower = STATION.home
    goal = leader.of_follower(follower)
    assert mirror.drive(0.0, follower) is None  # nobody knows where the leader is
    own, now = goal + 0.4, 1.0
    limit = 0.5 * STATION.max_velocity * STATION.step_s / np.abs([row.scale for row in leader.rows])
    for _ in range(100):
        now += 0.02
        assert heard(leader, now, own, list(leader.names))
        command = mirror.drive(now, follower)
        assert command is not None
        assert np.all(np.abs(command - own) <= limit + 1e-12)
        own = command
    np.testing.assert_allclose(own, goal, atol=1e-12)
    command = leader.command(now)
    assert command is not None
    np.testing.assert_allclose(command, follower, atol=1e-12)  # a takeover now has no way to go
    mirror.let_go()
    assert heard(leader, now + 0.02, goal - 0.3, list(leader.names))  # a person moved it
    command = mirror.drive(now + 0.02, follower)
    assert command is not None and np.all(np.abs(command - (goal - 0.3)) <= limit + 1e-12)
