"""The console's core without a browser: who commands, heartbeats, what is kept, the computer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("starlette")

from recap_teleop.console.control import ANSWER_S, BEAT_S, GONE_S, LET_GO_S, SETTLE_S, Control
from recap_teleop.console.feed import FIXED, HEAD, SAMPLES, Feed
from recap_teleop.console.machine import Machine, hours_left, read_gpus, recorded_mb_s
from recap_teleop.console.viewer import MOST_SAMPLES, Live


def two() -> tuple[Control, int, int]:
    control = Control()
    return control, control.join("ana", 0.0), control.join("", 0.0)


def test_a_free_control_goes_to_whoever_presses_first() -> None:
    control, ana, ben = two()
    assert control.refusal(ana, "start") == ""
    assert control.refusal(ben, "start") == "ana is in control"
    assert control.refusal(ben, "stop") == control.refusal(ben, "estop") == ""
    control.leave(ana, 1.0)
    assert control.holder is None and control.refusal(ben, "start") == ""


def test_a_holder_gives_refuses_or_is_passed_over_in_time() -> None:
    control, ana, ben = two()
    control.ask(ana, 0.0)
    control.ask(ben, 1.0)
    assert control.answer(ana, False) == "operator 2 was refused" and control.holder == ana
    control.ask(ben, 2.0)
    assert control.answer(ben, True) == "you are not in control"
    control.answer(ana, True)
    assert control.holder == ben
    control.ask(ana, 10.0)
    control.beat(ben, 10.0 + ANSWER_S)
    control.tick(10.0 + ANSWER_S - 0.1, False)
    assert control.holder == ben
    control.tick(10.0 + ANSWER_S + 0.1, False)
    assert control.holder == ana


def test_who_moves_the_arms_keeps_control_without_answering() -> None:
    control, ana, ben = two()
    control.ask(ana, 0.0)
    control.taking_over(ana, 0.0)
    control.ask(ben, 1.0)
    for k in range(10 * round(ANSWER_S + 5.0)):
        control.beat(ana, 0.1 * k)
        control.tick(0.1 * k, True)
    assert control.holder == ana


def test_a_holder_that_is_gone_gives_control_to_who_asks() -> None:
    control, ana, ben = two()
    control.ask(ana, 0.0)
    control.ask(ben, 1.0)
    control.tick(GONE_S + 0.1, False)
    assert control.holder == ben


def test_a_takeover_is_said_to_live_while_its_browser_answers_and_then_not_at_all() -> None:
    control, ana, _ = two()
    control.taking_over(ana, 0.0)
    for k in range(20):
        control.beat(ana, 0.1 * k)
        control.tick(0.1 * k, True)
        assert control.holds.say(0.1 * k) is True
    control.tick(1.9 + BEAT_S + 0.01, True)
    assert control.holds.say(1.9 + BEAT_S + 0.01) is None, (
        "silence, which the arbiter understands, and no False"
    )
    assert control.takeover is None and control.lost == "ana"
    control.beat(ana, 5.0)
    assert control.holds.say(5.0) is None, "a browser that comes back has not taken over"


def test_even_if_nothing_ticks_a_silent_browser_is_not_said_to_live() -> None:
    control, ana, _ = two()
    control.taking_over(ana, 0.0)
    assert control.holds.say(BEAT_S + 0.01) is None


def test_a_page_that_is_closed_in_a_takeover_is_silence() -> None:
    control, ana, _ = two()
    control.taking_over(ana, 0.0)
    control.leave(ana, 0.1)
    assert control.holds.say(0.1) is None and control.lost == "ana"


def test_a_takeover_that_ended_elsewhere_is_let_go() -> None:
    control, ana, _ = two()
    control.taking_over(ana, 0.0)
    control.beat(ana, SETTLE_S)
    control.tick(SETTLE_S - 0.1, False)
    assert control.takeover == ana
    control.tick(SETTLE_S + 0.1, False)
    assert control.takeover is None and control.lost == ""
    assert control.holds.say(SETTLE_S + 0.2) is False
    assert control.holds.say(SETTLE_S + 0.2 + LET_GO_S) is None


def test_samples_come_in_order_and_at_most_the_newest() -> None:
    feed = Feed(cameras=1, dof=2, rate_hz=50.0)
    assert feed.samples(0, 10) == (0, b"")
    feed.state(np.array([5.0, 6.0]))
    for k in range(4000):
        feed.command(np.array([k, -k], dtype=float), 1, 100.0 + 0.02 * k)
    count, message = feed.samples(0, 100)
    kind, first, rows, columns, start = HEAD.unpack(message[: HEAD.size])
    table = np.frombuffer(message[HEAD.size :], np.float32).reshape(rows, columns)
    assert (kind, count, first, rows, columns) == (SAMPLES, 4000, 3900, 100, FIXED + 4)
    assert start == pytest.approx(100.0 + 0.02 * 3900)
    np.testing.assert_allclose(table[:, 0], 0.02 * np.arange(100), atol=1e-4)
    np.testing.assert_array_equal(table[:, 3], np.arange(3900, 4000))
    assert (table[:, 5:] == [5.0, 6.0]).all() and np.isnan(table[:, 2]).all()


def test_a_viewer_that_was_away_skips_what_it_missed() -> None:
    feed, live = Feed(cameras=0, dof=1, rate_hz=50.0), Live(seen=0)
    for k in range(1400):
        feed.command(np.zeros(1), 0, 0.02 * k)
    first = live.samples(feed, 0.0)
    assert HEAD.unpack(first[: HEAD.size])[2] == MOST_SAMPLES
    assert live.samples(feed, 1.0) == b"", "the first was not answered"
    live.answered("samples")
    assert live.samples(feed, 1.0) == b"", "nothing new"


def test_the_value_curve_begins_anew_with_each_attempt() -> None:
    feed = Feed(cameras=0, dof=1, rate_hz=50.0)
    feed.began("a")
    feed.value(-0.5, 1.0)
    feed.began("a")
    assert feed.values() == [(1.0, -0.5)]
    feed.began("b")
    assert feed.values() == []


def test_room_on_the_disk_is_hours_at_the_rate_of_the_newest_bags(tmp_path: Path) -> None:
    assert recorded_mb_s(tmp_path / "none") is None and hours_left(1e12, None) is None
    bag = tmp_path / "20260101T000000_0001"
    bag.mkdir()
    (bag / "data.mcap").write_bytes(bytes(2_000_000))
    about = {"rosbag2_bagfile_information": {"duration": {"nanoseconds": 4_000_000_000}}}
    (bag / "metadata.yaml").write_text(yaml.safe_dump(about))
    assert recorded_mb_s(tmp_path) == pytest.approx(0.5, rel=0.01)
    assert hours_left(3.6e12, 0.5) == 2000.0
    seen = Machine(tmp_path / "not" / "yet").look()
    assert seen["disk_free_gb"] > 0 and len(seen["cpu"]) >= 1


def test_gpus_are_read_as_nvidia_smi_writes_them() -> None:
    said = "NVIDIA H100, 37, 1024, 81559, 41\nNVIDIA T4, [N/A], 3, 16000, 30\n"
    first, second = read_gpus(said)
    assert (first["name"], first["busy_percent"], first["memory_total_mb"]) == ("NVIDIA H100", 37.0, 81559.0)
    assert second["busy_percent"] is None
    assert read_gpus("") == [] and read_gpus("No devices were found\n") == []
