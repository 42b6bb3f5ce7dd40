"""The transition table: what may follow what, over any sequence of events."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from recap_teleop.modes import TABLE, Event, Mode, State, next_state

EVENTS = st.lists(st.sampled_from(Event), max_size=40)


def run(events: list[Event], state: State = State.HOLD) -> list[State]:
    states = [state]
    for event in events:
        states.append(next_state(states[-1], event))
    return states


def test_modes_are_those_of_the_message() -> None:
    from recap_station.cdr import typestore

    message = typestore().types["recap_interfaces/msg/ControlMode"]
    assert {mode.name: mode.value for mode in Mode} == {
        mode.name: getattr(message, mode.name) for mode in Mode
    }


@settings(max_examples=200)
@given(EVENTS)
def test_estop_is_left_only_by_its_release_and_only_to_a_stop(events: list[Event]) -> None:
    states = run(events)
    for before, event, after in zip(states, events, states[1:], strict=False):
        if event is Event.ESTOP:
            assert after is State.ESTOP
        if before is State.ESTOP and after is not State.ESTOP:
            assert event is Event.RELEASE_ESTOP and after is State.STOPPED


@settings(max_examples=200)
@given(EVENTS)
def test_policy_is_reached_only_through_a_hand_back(events: list[Event]) -> None:
    states = run(events)
    for before, after in pairwise(states):
        if after is State.POLICY and before is not State.POLICY:
            assert before is State.HANDING_BACK
        if after is State.TELEOP and before is not State.TELEOP:
            assert before is State.TAKING_OVER


@settings(max_examples=200)
@given(EVENTS)
def test_a_stop_holds_until_a_person_says_otherwise(events: list[Event]) -> None:
    states = run(events)
    for before, event, after in zip(states, events, states[1:], strict=False):
        if event is Event.STOP and before is not State.ESTOP:
            assert after is State.STOPPED
        if before is State.STOPPED and after is not State.STOPPED:
            assert event in (Event.RESUME, Event.TAKE_OVER, Event.ESTOP)


@settings(max_examples=200)
@given(EVENTS)
def test_losing_what_commands_always_ends_in_a_hold(events: list[Event]) -> None:
    state = run(events)[-1]
    for lost in (Event.STATE_LOST, Event.EPISODE_END, Event.PEDAL_LOST):
        assert next_state(state, lost).mode in (Mode.HOLD, Mode.ESTOP)
    if state is State.POLICY:
        assert next_state(state, Event.POLICY_LOST) is State.HOLD
    if state is State.TELEOP:
        assert next_state(state, Event.HUMAN_LOST) is State.HOLD


def test_every_state_can_be_reached_and_left() -> None:
    assert {after for after in TABLE.values()} == set(State)
    assert {before for before, _ in TABLE} == set(State)
    assert all((state, Event.ESTOP) in TABLE for state in State if state is not State.ESTOP)
