"""Keys and what they ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_station.contract import ContractError
from recap_teleop.episode import Outcome
from recap_teleop.keys import ACTIONS, KEYS, read_keys, split_keys


def test_every_key_asks_for_an_action_and_outcomes_are_the_episodes() -> None:
    assert set(KEYS.values()) <= set(ACTIONS)
    outcomes = {name: Outcome(action.outcome) for name, action in ACTIONS.items() if action.outcome}
    assert outcomes == {
        "success": Outcome.SUCCESS,
        "failure": Outcome.FAILURE,
        "discard": Outcome.DISCARDED,
    }
    assert all(ACTIONS[name].service == "end_episode" for name in outcomes)


def test_typed_text_becomes_key_names() -> None:
    assert split_keys("s \n\tq") == ["s", "space", "enter", "tab", "q"]


def test_caps_lock_disarms_nothing() -> None:
    assert split_keys("E") == ["e"]


@pytest.mark.parametrize("sequence", ["\x1b[A", "\x1b[1;5D", "\x1bOP", "\x1b[15~", "\x1b[3~", "\x1bs"])
def test_arrow_and_function_keys_are_nobodys_letters(sequence: str) -> None:
    assert split_keys(sequence) == []
    assert split_keys(f"n{sequence}s") == ["n", "s"]


@given(st.text())
def test_any_text_is_read_without_an_error(typed: str) -> None:
    assert all(key for key in split_keys(typed))


def test_keys_can_be_bound_anew_and_unbound() -> None:
    keys = read_keys(["enter=success", "s=", "e=stop"])
    assert keys["enter"] == "success" and "s" not in keys and keys["e"] == "stop"
    assert keys["space"] == "takeover"


@pytest.mark.parametrize(
    ("word", "said"),
    [("s=sucess", "did you mean 'success'"), ("s", "wanted KEY=ACTION"), ("=success", "wanted KEY=ACTION")],
)
def test_wrong_bindings_are_named(word: str, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_keys([word])
