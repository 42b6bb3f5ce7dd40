"""Stamps that cannot be, clocks that jump or differ, recordings that break off: told, and nothing made up."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
from foreign_bags import (
    JOINTS,
    TICKS,
    at,
    cell,
    command,
    event,
    expected,
    moved,
    read,
    state,
    whole,
    write,
)

from recap_learner.data.episodes import (
    ConversionError,
    read_attempts,
)
from recap_station import topics
from recap_station.cdr import joint_state


def test_a_stamp_off_by_years_is_left_out_and_nans_too(tmp_path: Path) -> None:
    rows = whole()
    rows[rows.index(state(10))] = state(10, stamp=at(10) - 10**17)
    spoilt = joint_state(at(12), JOINTS, [0.0, np.nan, np.inf])
    rows[rows.index(state(12))] = ("/joint_states", topics.JOINT_STATE_TYPE, at(12), spoilt)
    episode = read(rows, tmp_path)
    wanted = expected()
    wanted[[10, 12]] = wanted[[9, 11]]
    np.testing.assert_array_equal(episode.state, wanted)
    assert "a stamp that cannot be" in episode.info.damage and "not finite" in episode.info.damage


@pytest.mark.parametrize("topic", ["/joint_states", "/joint_command"])
@pytest.mark.parametrize(
    ("ticks", "seconds"),
    [((30,), 0.5), ((30,), 4.0), ((30, 31), 60.0), ((30, 31), 1e8), ((30, 31, 32), -2.0)],
)
def test_stamps_that_run_away_and_come_back_are_left_out(
    tmp_path: Path, topic: str, ticks: tuple[int, ...], seconds: float
) -> None:
    bad = {at(tick) for tick in ticks}
    rows = [moved(row, seconds, False) if row[0] == topic and row[2] in bad else row for row in whole()]
    episode = read(rows, tmp_path)
    wanted = expected()
    wanted[list(ticks)] = wanted[29]
    spoilt, sound = episode.state, episode.command
    if topic == "/joint_command":
        spoilt, sound = sound, spoilt
    np.testing.assert_array_equal(spoilt, wanted)
    np.testing.assert_array_equal(sound, expected())
    assert episode.info.damage == f"{len(ticks)} × a stamp that cannot be on {topic[1:]}"


@pytest.mark.parametrize("tick", [0, TICKS - 1])
@pytest.mark.parametrize("seconds", [3.0, 1e8])
def test_a_first_or_last_stamp_ahead_takes_nothing_else_along(
    tmp_path: Path, tick: int, seconds: float
) -> None:
    rows = [moved(r, seconds, False) if r[:3] == command(tick)[:3] else r for r in whole()]
    episode = read(rows, tmp_path)
    there = np.flatnonzero(episode.time_ns <= at(TICKS - 1))
    np.testing.assert_array_equal(episode.state[there], expected()[1 if tick == 0 else 0 :][: len(there)])
    assert (
        len(there) >= TICKS - 1 and len(episode) <= TICKS + 150
    )  # 3 s at the end may be a clock that jumped


def test_a_recorder_that_stalls_spoils_no_stamp(tmp_path: Path) -> None:
    rows = [(t, k, at(34) if at(30) <= now < at(34) else now, cdr) for t, k, now, cdr in whole()]
    rows = [(t, k, at(34) + 4 * 10**8 if now == at(34) else now + 4 * 10**8, cdr) if now >= at(34) else row
            for row in rows for t, k, now, cdr in [row]]  # fmt: skip
    episode = read(rows, tmp_path)
    np.testing.assert_array_equal(episode.state, expected())
    assert episode.info.damage == ""


@pytest.mark.parametrize("seconds", [3600.0, 4e8], ids=["an hour", "years"])
def test_a_break_or_a_clock_that_jumps_forward_cuts_the_recording(tmp_path: Path, seconds: float) -> None:
    rows = [moved(row, seconds) if row[2] >= at(20) else row for row in whole()]
    episode = read(rows, tmp_path)
    np.testing.assert_array_equal(episode.state, expected()[20:])
    np.testing.assert_array_equal(episode.image["eye"], np.arange(20, TICKS) // 5)
    assert episode.info.damage == (
        f"neither state nor command for {seconds / 3600:.1f} h: only the longest of 2 stretches is used, "
        "0.8 of 1.2 s"
    )
    # Attempts are cut by their events: what lies between is none of theirs, but no attempt lasts for years.
    apart = [event(2, "one", True), event(15, "one", False, 1)]
    apart += [moved(event(25, "two", True), seconds), moved(event(45, "two", False, 2), seconds)]
    episodes = read_attempts(
        write(tmp_path / "two.mcap", sorted([*rows, *apart], key=lambda row: row[2])),
        tmp_path,
        cell(tmp_path),
    )
    assert [len(e) for e in episodes] == [14, 21] and all(e.info.damage == "" for e in episodes)
    if seconds > 24 * 3600:
        with pytest.raises(ConversionError, match=r"an attempt of 111111\.1 h, wanted 24 h at most"):
            read(sorted([*rows, *apart[:1], apart[3]], key=lambda row: row[2]), tmp_path)


def test_set_points_now_and_then_are_no_break(tmp_path: Path) -> None:
    rows = [state(tick) for tick in range(0, 150 * 50, 4)] + [command(tick) for tick in (0, 3600, 7400)]
    episode = read(sorted(rows, key=lambda row: row[2]), tmp_path)
    assert len(episode) == 7401 and "neither" not in episode.info.damage


def test_clocks_that_differ_are_told(tmp_path: Path) -> None:
    shift = {"/joint_states": -3600.0, "/eye/image_raw/compressed": -2.0}
    episode = read([moved(row, shift.get(row[0], 0.0), False) for row in whole()], tmp_path)
    states, images = episode.info.damage.split("; ")
    assert states == (
        "100% of the ticks are gaps: joint_states is 3599.41 s old at the median tick, wanted 0.1 s at most"
    )
    assert images == "eye/image_raw/compressed is 1.5 s old at the median tick, wanted one of 1.0 s at most"
    late = [moved(row, 10.0, False) if row[0] == "/eye/image_raw/compressed" else row for row in whole()]
    assert "has no image yet at the median tick" in read(late, tmp_path).info.damage
    dropped = {"topic": "eye/image_raw/compressed", "align": "drop"}  # at most ticks there is none, by choice
    assert read(whole(), tmp_path, images={"eye": dropped}).info.damage == ""


def test_a_clock_that_jumps_back_cuts_the_recording(tmp_path: Path) -> None:
    rows = whole()
    before = [row for row in rows if row[2] < at(20)]
    after = [moved(row, -3) for row in rows if row[2] >= at(20)]
    episode = read([*before, *after], tmp_path)
    assert len(episode) == 40 and "jumps back" in episode.info.damage
    np.testing.assert_array_equal(episode.state, expected()[20:])
    # A camera's clock alone: its images are placed by when they were received.
    only_camera = [
        moved(row, -3, False) if row[1] == topics.IMAGE_TYPE and row[2] >= at(20) else row for row in rows
    ]
    episode = read(only_camera, tmp_path)
    np.testing.assert_array_equal(episode.image["eye"], np.arange(TICKS) // 5)
    assert "times of receipt are used" in episode.info.damage
