"""Switches ask for actions on the way down, once, and only when it is certain that they were pressed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_station.contract import ContractError
from recap_teleop.buttons import Buttons, Switch, read_map

THREE = read_map("takeover,success,failure")


def test_map_names_buttons_by_place_or_by_number_and_axes_by_threshold() -> None:
    assert (Switch(0, "takeover"), Switch(1, "success"), Switch(2, "failure")) == THREE
    assert read_map("b5=takeover, a2<-0.5=success") == (
        Switch(5, "takeover"),
        Switch(2, "success", -1, -0.5),
    )
    assert read_map("success,,b7=estop") == (Switch(0, "success"), Switch(7, "estop"))
    assert read_map("a3>.5=stop,a3<-.5=resume")[1] == Switch(3, "resume", -1, -0.5)
    assert read_map("") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("takeover,sucess", "did you mean 'success'"),
        ("b1=", "names no action"),
        ("c1=success", "wanted a button such as b3"),
        ("a1=success", "an axis such as a2>0.5"),
        ("b1>0.5=success", "wanted a button"),
        ("takeover,b0=success", "button 0 is given two actions"),
    ],
)
def test_wrong_maps_are_named(text: str, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_map(text)


def test_press_asks_once_and_release_never() -> None:
    buttons = Buttons(THREE)
    assert buttons.hear(0.00, [0, 0, 0]) == []
    assert buttons.hear(0.10, [0, 1, 0]) == ["success"]
    assert buttons.hear(0.12, [0, 1, 0]) == []
    assert buttons.hear(0.20, [0, 0, 0]) == []


def test_several_short_presses_all_count() -> None:
    buttons = Buttons(THREE)
    buttons.hear(0.0, [0, 0, 0])
    asked = []
    for press in range(5):
        asked += buttons.hear(0.1 + 0.08 * press, [0, 0, 1])
        asked += buttons.hear(0.14 + 0.08 * press, [0, 0, 0])
    assert asked == ["failure"] * 5


def test_bouncing_contact_is_one_press() -> None:
    buttons = Buttons(THREE, debounce_s=0.02)
    buttons.hear(0.0, [0, 0, 0])
    asked = []
    for when, down in [(0.100, 1), (0.103, 0), (0.105, 1), (0.2, 0), (0.204, 1), (0.207, 0)]:
        asked += buttons.hear(when, [0, down, 0])
    assert asked == ["success"]


def test_switch_that_is_down_at_first_is_not_pressed() -> None:
    buttons = Buttons(THREE)
    assert buttons.hear(0.0, [1, 1, 0]) == []
    assert buttons.takeover  # a level: whoever holds it holds it


def test_device_that_vanishes_mid_press_asks_for_nothing() -> None:
    buttons = Buttons(THREE)
    buttons.hear(0.0, [0, 0, 0])
    assert buttons.hear(0.1, [0, 1, 0]) == ["success"]
    buttons.lost()
    assert buttons.down == []
    assert buttons.hear(0.15, [0, 1, 0]) == []  # it is back, and still pressed: the same press
    buttons.hear(0.2, [0, 0, 0])
    assert buttons.hear(0.3, [0, 1, 0]) == ["success"]


def test_silence_is_no_press() -> None:
    buttons = Buttons(THREE, gap_s=0.25)
    buttons.hear(0.0, [0, 0, 0])
    assert buttons.hear(0.3, [0, 1, 0]) == []  # when it went down is not known
    assert buttons.silent_s(0.4) == pytest.approx(0.1)


def test_axis_is_a_button_with_a_threshold_and_does_not_flicker_at_it() -> None:
    buttons = Buttons(read_map("a2<-0.5=takeover,a3>0.5=success"))
    assert buttons.hear(0.00, [], [0, 0, 0.0, 0.0]) == []  # what joy_node says before a trigger moved
    buttons.hear(0.05, [], [0, 0, -0.52, 0.0])
    assert buttons.takeover
    buttons.hear(0.10, [], [0, 0, -0.47, 0.0])
    assert buttons.takeover
    buttons.hear(0.15, [], [0, 0, -0.43, 0.0])
    assert not buttons.takeover
    assert buttons.hear(0.20, [], [0, 0, 0.0, 0.9]) == ["success"]


@pytest.mark.parametrize(
    ("pressed", "axes", "said"),
    [([0, 0], [], "2 buttons, wanted button 2"), ([0, 0, 0], [float("nan")], "nan on axis 0")],
)
def test_message_without_the_maps_switches_changes_nothing(
    pressed: list[int], axes: list[float], said: str
) -> None:
    buttons = Buttons((*THREE, *([Switch(0, "stop", 1, 0.5)] if axes else [])))
    with pytest.raises(ContractError, match=said):
        buttons.hear(1.0, pressed, axes)
    assert buttons.silent_s(1.0) == float("inf")


@given(
    st.lists(
        st.tuples(st.floats(0.001, 0.5), st.sampled_from(["up", "down", "lost"])), min_size=1, max_size=60
    )
)
def test_every_action_follows_an_up_that_was_heard_just_before(events: list[tuple[float, str]]) -> None:
    """Whatever happens: as many actions as changes from a level up to a level down without a gap between."""
    buttons = Buttons(read_map("success"), debounce_s=0.0, gap_s=0.25)
    now, last, asked, certain = 0.0, "lost", 0, 0
    for wait_s, what in events:
        now += wait_s
        if what == "lost":
            buttons.lost()
        else:
            certain += last == "up" and what == "down" and wait_s <= 0.25 - 1e-9
            asked += len(buttons.hear(now, [int(what == "down")]))
        last = what
    assert asked <= certain + sum(1 for wait_s, _ in events if abs(wait_s - 0.25) < 1e-6)
    assert asked >= certain
