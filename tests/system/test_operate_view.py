"""The operator's view without a terminal and without ROS: what was heard → what is shown and asked."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import struct
import termios
from dataclasses import replace
from fcntl import ioctl

import pytest

pytest.importorskip("evdev")

from recap.operate import view
from recap.operate.actions import REPEAT_S, Hands, Told, legend
from recap.operate.terminal import ENTER, LEAVE, Terminal, TerminalGone, speaks_unicode
from recap_station import topics
from recap_teleop.board import Board, wanted_topics
from recap_teleop.modes import Event, Mode
from recap_teleop.requests import Request
from recap_teleop.snapshot import ModeSeen, Snapshot, advice

POLICY, HANDOVER, TELEOP, HOLD, ESTOP = (int(mode) for mode in Mode)


def board() -> Board:
    return Board("88", "cell_1", wanted_topics(50.0, [("base_camera", 30.0)]))


def attempt(state: int, outcome: int = 0, identity: str = "one", **changed: object) -> dict[str, object]:
    fields = {"id": identity, "state": state, "outcome": outcome, "reason": "", "task": "handover_insert"}
    return {**fields, "seed": 3, "elapsed_s": 0.0, "time_limit_s": 15.0, **changed}


def busy() -> Board:
    """A cell in the middle of a correction: everything is heard."""
    cell = board()
    cell.episode(9.0, 0.0, **attempt(0))
    cell.mode(HOLD, "hold", "started", 9.0)
    cell.episode(10.0, 0.0, **attempt(1))
    cell.mode(POLICY, "policy", "fresh policy command reached", 10.0)
    for tick in range(101):
        now = 10.0 + tick / 50
        for topic in (topics.JOINT_STATES, topics.JOINT_COMMAND, topics.TELEOP_COMMAND):
            cell.heard(topic, now)
        cell.joy(True, now)
        if tick % 2 == 0:  # at half rate
            cell.heard(topics.image_topic("base_camera"), now + 0.001)
    cell.mode(TELEOP, "teleop", "person's command reached", 11.5)
    cell.value(-0.31, 11.9)
    values = {"dropped": "2", "queued": "7"}
    cell.status("cell_1/recorder: bag", 1, "recording one", values, 11.9)
    values = {"checkpoint": "runs/demo/policy", "latency_p50_ms": "48.2"}
    cell.status("cell_1/policy: checkpoint", 0, "policy f5512", values, 11.9)
    cell.status("cell_1/pedal: device", 2, "no device is named", {}, 11.9)
    cell.said("take over: POLICY -> TAKING_OVER")
    return cell


def text(now: Snapshot, width: int = 80, height: int = 24, glyphs: view.Glyphs = view.ASCII) -> str:
    return "\n".join(line.plain for line in view.lines(now, width, height, glyphs))


# --- what is shown ----------------------------------------------------------------------------------

SCREEN = """\
 recap operate  ROS domain 88, namespace /cell_1                        1 error
  [ T E L E O P ]  a person commands
  because: person's command reached  - for 0:00

-- episode ----------------------------  -- recorder, policy -------------------
RUNNING                                  recording one
one                                      dropped 2, waiting 7
handover_insert, seed 3                  policy f5512
  2.0 of 15 s  #.........                runs/demo/policy
corrections 1, 0.5 s                     latency 48 ms, value -0.31
-- sources ----------------------------  -- topics -----------------------------
o policy  never heard                    * joint_states      0 ms  50/50 Hz
* teleop     0 ms     50 Hz  commands    * joint_command     0 ms  50/50 Hz
* pedal      0 ms     50 Hz  pressed     * base_camera       0 ms  25/30 Hz
-- diagnostics -----------------------------------------------------------------
error cell_1/pedal: device - no device is named
warn  cell_1/recorder: bag - recording one




> ok take over: POLICY -> TAKING_OVER
 space  hand back   s  success   f  failure   d  discard   n  next attempt
 u  undo   x  stop   r  resume   e  EMERGENCY STOP   q  quit"""


def test_a_correction_on_80_columns_and_24_rows() -> None:
    assert text(busy().snapshot(12.0)) == SCREEN


def test_the_mode_is_written_large_where_there_is_room() -> None:
    shown = text(busy().snapshot(12.0), glyphs=view.Glyphs())
    assert "▀█▀" in shown and "a person commands" in shown
    assert len(shown.splitlines()) == 24


@pytest.mark.parametrize("width", [20, 39, 72, 80, 200])
@pytest.mark.parametrize("height", [1, 5, 9, 14, 24, 60])
def test_any_size_of_screen_is_kept_to(width: int, height: int) -> None:
    for now in (busy().snapshot(12.0), board().snapshot(0.0), busy().snapshot(99.0)):
        lines = view.lines(now, width, height)
        assert len(lines) <= height
        assert all(line.cell_len <= width for line in lines)
        if height >= 14 and width >= 39:
            assert any("space" in line.plain for line in lines)


def test_what_a_node_says_cannot_move_the_cursor() -> None:
    cell = busy()
    cell.status("cell_1/policy: checkpoint", 2, "bad\x1b[2J\nnews", {}, 11.95)
    assert "\x1b" not in text(cell.snapshot(12.0)) and "bad" in text(cell.snapshot(12.0))


def test_json_of_a_snapshot_is_plain() -> None:
    said = json.loads(json.dumps(busy().snapshot(12.0).to_dict()))
    assert said["mode"]["name"] == "TELEOP" and said["teleop_alive"] is True
    assert said["episode"]["corrections"] == 1 and said["recorder"]["dropped"] == 2
    assert [s["live"] for s in said["sources"]] == [False, True, True]


# --- how things stand ---------------------------------------------------------------------------------


def test_taking_over_without_a_teleop_source_is_said_to_hold() -> None:
    cell = board()
    cell.mode(POLICY, "policy", "policy is there", 0.0)
    assert "would only HOLD" in advice(cell.snapshot(0.1))
    cell.mode(HOLD, "hold", Event.HUMAN_LOST.value, 0.2)
    now = cell.snapshot(0.3)
    assert now.person_wanted and "the robot HOLDS until one is" in advice(now)


def test_a_hand_back_out_of_a_hold_is_known_until_the_mode_changes() -> None:
    cell = board()
    cell.mode(HOLD, "hold", Event.HUMAN_LOST.value, 0.0)
    cell.asked("hand_back")
    cell.mode(HOLD, "hold", Event.HUMAN_LOST.value, 0.5)  # repeated twice a second
    assert not cell.snapshot(0.6).person_wanted
    cell.mode(HANDOVER, "teleop", Event.TAKE_OVER.value, 0.7)
    cell.mode(HOLD, "hold", Event.HUMAN_LOST.value, 0.9)
    assert cell.snapshot(1.0).person_wanted


def test_the_end_of_an_attempt_ends_what_a_person_wanted_of_it() -> None:
    cell = board()
    cell.episode(0.0, 0.0, **attempt(1))
    cell.mode(HOLD, "hold", Event.HUMAN_LOST.value, 1.0)
    assert cell.snapshot(1.1).person_wanted
    cell.episode(2.0, 0.0, **attempt(2, 1))
    assert not cell.snapshot(2.1).person_wanted


def test_a_silent_arbiter_is_not_a_mode() -> None:
    cell = busy()
    now = cell.snapshot(20.0)
    assert not now.mode.live and "arbiter is silent" in advice(now)
    assert "S I L E N T" in text(now) and "last heard: TELEOP" in text(now)
    assert "no arbiter was heard" in advice(board().snapshot(0.0))


def test_corrections_are_counted_in_the_attempt_that_runs() -> None:
    cell = board()
    cell.episode(0.0, 0.0, **attempt(1))
    for begin in (1.0, 3.0):
        cell.mode(TELEOP, "teleop", "take over", begin)
        cell.mode(POLICY, "policy", "hand back", begin + 0.5)
    cell.mode(TELEOP, "teleop", "take over", 5.0)
    cell.episode(6.0, 0.0, **attempt(2, 1))
    ended = cell.snapshot(9.0).episode
    assert (ended.corrections, ended.corrected_s, ended.whole) == (3, pytest.approx(2.0), True)
    cell.episode(10.0, 0.0, **attempt(1, identity="two"))
    assert cell.snapshot(10.5).episode.corrections == 1  # the person was never gone


def test_an_attempt_joined_in_the_middle_is_as_old_as_its_message() -> None:
    cell = board()
    cell.episode(100.0, 7.0, **attempt(1))
    seen = cell.snapshot(101.0).episode
    assert seen.elapsed_s == pytest.approx(8.0) and not seen.whole


def test_an_attempt_that_is_told_again_and_again_is_not_counted_twice() -> None:
    cell = board()
    for second in range(4):
        cell.episode(float(second), 0.0, **attempt(1, elapsed_s=float(second)))
    assert cell.snapshot(3.5).episode.elapsed_s == pytest.approx(3.5)


def test_what_episode_control_asks_of_a_person_is_shown_and_unknown_states_are() -> None:
    cell = board()
    cell.mode(HOLD, "hold", "started", 0.0)
    cell.episode(0.0, 0.0, **attempt(7, message="put the peg back, then press n", stage="reset"))
    now = cell.snapshot(0.1)
    assert advice(now) == "put the peg back, then press n" and "Phase 7" in text(now)


def test_an_outcome_can_be_put_right_for_ten_seconds_from_the_end_not_from_the_last_change() -> None:
    cell = board()
    cell.episode(0.0, 0.0, **attempt(2, 1))
    cell.episode(6.0, 0.0, **attempt(2, 2))
    seen = cell.snapshot(7.0).episode
    assert seen.outcome == "FAILURE" and seen.relabel_s == pytest.approx(3.0)


def test_alarms_are_the_lines_that_are_not_well_and_the_nodes_that_fell_silent() -> None:
    cell = board()
    cell.status("cell_1/policy: callbacks", 1, "3 errors", {}, 0.0)
    cell.status("cell_1/policy: checkpoint", 0, "policy f5512", {}, 1.0)  # its next, without that line
    cell.status("cell_1/pedal: device", 2, "gone", {}, 1.0)
    cell.status("cell_2/pedal: device", 2, "of another cell", {}, 1.0)
    cell.status("pedal: device", 2, "of a cell without a namespace", {}, 1.0)
    assert [alarm.text for alarm in cell.snapshot(1.5).alarms] == ["gone"]
    cell.status("cell_1/pedal: device", 0, "there", {}, 5.0)
    assert [(a.level, a.name) for a in cell.snapshot(7.0).alarms] == [("error", "cell_1/policy")]


def test_streams_fall_silent() -> None:
    cell = board()
    for tick in range(50):
        cell.heard(topics.JOINT_STATES, tick / 50)
    live, later = cell.snapshot(1.0).topics[0], cell.snapshot(3.0).topics[0]
    assert live.live and live.rate_hz == pytest.approx(50.0)
    assert not later.live and later.rate_hz == 0.0 and later.age_s == pytest.approx(2.02)


# --- what keys ask for --------------------------------------------------------------------------------


def in_mode(name: str, source: str = "hold", reason: str = "") -> Snapshot:
    return replace(Snapshot("0", ""), mode=ModeSeen(name, source, reason, live=True))


def test_space_takes_over_and_hands_back_and_a_held_one_does_it_once() -> None:
    hands = Hands()
    taken = hands.press("space", in_mode("POLICY", "policy"), 0.0)
    assert isinstance(taken, Request) and taken.service == "take_over"
    now = in_mode("TELEOP", "teleop")
    for at in (0.5, 0.55, 0.6, 1.2):  # the terminal's repeats
        assert hands.press("space", now, at) is None
    back = hands.press("space", now, 1.2 + 1.1 * REPEAT_S)
    assert isinstance(back, Request) and back.service == "hand_back"


@pytest.mark.parametrize(
    ("key", "service", "outcome"),
    [
        ("s", "end_episode", 1),
        ("f", "end_episode", 2),
        ("d", "end_episode", 3),
        ("n", "start_episode", 0),
        ("x", "stop", 0),
        ("r", "resume", 0),
        ("e", "estop", 0),
        ("u", "undo_label", 0),
    ],
)
def test_keys_call_services(key: str, service: str, outcome: int) -> None:
    wish = Hands().press(key, in_mode("POLICY"), 0.0)
    assert isinstance(wish, Request) and (wish.service, wish.outcome) == (service, outcome)


def test_an_emergency_stop_is_released_by_two_keys_in_time() -> None:
    hands, stopped = Hands(), in_mode("ESTOP")
    assert hands.press("y", stopped, 0.0) is None
    assert isinstance(hands.press("r", stopped, 1.0), Told)
    assert hands.press("y", stopped, 30.0) is None
    hands.press("r", stopped, 40.0)
    hands.press("x", stopped, 41.0)
    assert hands.press("y", stopped, 42.0) is None  # another key came between
    hands.press("r", stopped, 50.0)
    wish = hands.press("y", stopped, 51.0)
    assert isinstance(wish, Request) and wish.service == "release_estop"
    assert ("r", "release") in legend(stopped)


# --- the terminal ---------------------------------------------------------------------------------------


class Pty:
    """Both ends of a terminal."""

    def __init__(self) -> None:
        self.far, self.near = pty.openpty()
        ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def said(self) -> str:
        """All that was written since: the kernel hands it over in pieces, when it comes to it."""
        data = b""
        while select.select([self.far], [], [], 0.5 if data else 10.0)[0]:
            data += os.read(self.far, 1_000_000)
        return data.decode(errors="replace")

    def settings(self) -> list:
        return termios.tcgetattr(self.near)

    def open(self, **environment: str) -> Terminal:
        return Terminal(self.near, self.near, {"TERM": "xterm", "LANG": "C.UTF-8", **environment})


def test_a_terminal_is_given_back_as_it_was_after_an_error() -> None:
    pair = Pty()
    before = pair.settings()
    with pytest.raises(ZeroDivisionError), pair.open() as terminal:
        assert pair.settings() != before
        terminal.draw(view.lines(busy().snapshot(12.0), *terminal.size))
        raise ZeroDivisionError
    assert pair.settings() == before
    said = pair.said()
    assert said.startswith(ENTER) and said.endswith(LEAVE) and "\x1b[1;94m" not in said.split(LEAVE)[-1]


def test_only_lines_that_changed_are_written_again_and_all_after_a_resize() -> None:
    pair = Pty()
    with pair.open() as terminal:
        now = busy().snapshot(12.0)
        terminal.draw(view.lines(now, *terminal.size))
        first = pair.said()
        terminal.draw(view.lines(replace(now, answer="another answer"), *terminal.size))
        second = pair.said()
        assert "another answer" in second and len(second) < len(first) / 10
        ioctl(pair.near, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        assert terminal.size == (100, 40)
        terminal.draw(view.lines(now, *terminal.size))
        assert "\x1b[2J" in pair.said()


def test_without_colours_what_is_bold_stays_bold() -> None:
    pair = Pty()
    with pair.open(NO_COLOR="1") as terminal:
        terminal.draw(view.lines(busy().snapshot(12.0), *terminal.size))
        said = pair.said()
    assert "\x1b[1m" in said and "\x1b[92m" not in said and "\x1b[1;92m" not in said


def test_a_dumb_terminal_gets_lines_without_escapes() -> None:
    pair = Pty()
    with pair.open(TERM="dumb", LANG="C") as terminal:
        assert terminal.dumb and not terminal.unicode
        terminal.say(view.one_line(busy().snapshot(12.0)))
    said = pair.said()
    assert "TELEOP (teleop: person's command reached)" in said and "\x1b" not in said


def test_a_closed_terminal_is_told() -> None:
    pair = Pty()
    with pytest.raises(TerminalGone), pair.open() as terminal:
        os.close(pair.far)
        terminal.typed(1.0)


def test_the_locale_says_whether_box_characters_can_be_written() -> None:
    assert speaks_unicode({"LANG": "en_GB.UTF-8"}) and speaks_unicode({"LC_ALL": "C.utf8", "LANG": "C"})
    assert not speaks_unicode({"LANG": "C"}) and not speaks_unicode({})
    assert all(line.isascii() for line in text(busy().snapshot(12.0)).splitlines())
    assert io.StringIO(text(busy().snapshot(12.0))).readline()
