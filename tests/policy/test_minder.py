"""The minding of an inference process, with a process that only pretends: what is said, when, and to whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recap_policy.chunks import Chunk
from recap_policy.inference import Failed, InferenceDied, Inferred, Loaded, WarmUp
from recap_policy.interface import Sampling
from recap_policy.minder import Died, Minder, Opened, Refused
from recap_station.contract import ContractError, load_station

STATION = load_station("aloha")


class Process:
    """A fake of InferenceProcess: answers are put into `replies`, and `alive` says whether it lives."""

    def __init__(self) -> None:
        self.running = self.alive = self.busy = False
        self.starts, self.ticket = 0, 0
        self.loads: list[str] = []
        self.replies: list[Any] = []

    def start(self) -> None:
        self.running = self.alive = True
        self.starts += 1

    def stop(self, patience_s: float = 0.5) -> None:
        self.running = self.alive = False

    def _ask(self) -> int:
        if not self.alive:
            self.running = False
            raise InferenceDied("the inference process ended with code -9")
        self.ticket += 1
        return self.ticket

    def load(self, policy: str, *_: Any) -> int:
        ticket = self._ask()
        self.loads.append(policy)
        return ticket

    def infer(self, *_: Any) -> int:
        return self._ask()

    def poll(self) -> Any:
        if self.running and not self.alive:
            self.running = False
            raise InferenceDied("the inference process ended with code -9")
        return self.replies.pop(0) if self.replies else None


def made(checkpoint: str = "run/policy") -> tuple[Minder, Process]:
    process = Process()
    minder = Minder(process, STATION, WarmUp, checkpoint, patience_s=5.0)  # type: ignore[arg-type]
    minder.start()
    return minder, process


def infer(minder: Minder, now_s: float) -> int:
    return minder.infer(now_s, {}, STATION.home, "insert", Sampling(), False, None)


def test_a_policy_is_loaded_and_infers() -> None:
    minder, process = made()
    assert process.loads == ["run/policy"] and minder.loading and not minder.ready
    process.replies.append(Loaded(1, "abc", "", "cpu", 0.02))
    assert minder.step(0.0) == [Opened("run/policy", Loaded(1, "abc", "", "cpu", 0.02))]
    assert minder.ready and (minder.identity, minder.runtime) == ("abc", "cpu")
    ticket = infer(minder, 1.0)
    assert minder.waited_s(1.5) == 0.5
    chunk = Inferred(ticket, Chunk(np.zeros((50, 14))), "def", "", 0.1)
    process.replies.append(chunk)
    assert minder.step(1.6) == [chunk]
    assert minder.identity == "def" and minder.waited_s(9.0) == 0.0  # a server's policy may change
    ticket = infer(minder, 2.0)
    process.replies.append(Failed(ticket, "no images"))
    assert minder.step(2.1) == [Failed(ticket, "no images")] and minder.ready


def test_a_refused_policy_leaves_the_one_before() -> None:
    minder, process = made()
    process.replies.append(Loaded(1, "abc", ""))
    minder.step(0.0)
    answers: list[Any] = []
    minder.load("elsewhere", answers.append)
    process.replies.append(Failed(2, "no checkpoint there"))
    assert minder.step(0.1) == [Refused("elsewhere", "no checkpoint there")]
    assert answers == [Failed(2, "no checkpoint there")]
    assert (minder.checkpoint, minder.identity) == ("run/policy", "abc")
    assert minder.problem == "no checkpoint there"


def test_a_dead_process_is_replaced_after_a_pause_and_who_waits_is_told() -> None:
    minder, process = made()
    process.replies.append(Loaded(1, "abc", ""))
    minder.step(0.0)
    answers: list[Any] = []
    minder.load("other", answers.append)
    process.alive = False
    (died,) = minder.step(10.0)
    assert died == Died("the inference process ended with code -9")
    assert [type(answer) for answer in answers] == [Failed]
    assert (minder.identity, minder.deaths) == ("", 1) and not minder.ready
    assert minder.step(10.5) == [] and process.starts == 1
    assert minder.step(11.0) == [] and process.starts == 2
    assert process.loads == ["run/policy", "other", "run/policy"]  # the last that was there


def test_a_death_that_shows_when_something_is_asked_is_told_at_the_next_step() -> None:
    minder, process = made()
    process.replies.append(Loaded(1, "abc", ""))
    minder.step(0.0)
    process.alive = False
    with pytest.raises(ContractError, match="ended with code -9"):
        infer(minder, 1.0)
    answers: list[Any] = []
    minder.load("other", answers.append)
    assert [type(answer) for answer in answers] == [Failed]
    assert minder.step(1.1) == [Died("the inference process ended with code -9")]
    assert minder.deaths == 1


def test_a_hung_inference_is_ended() -> None:
    minder, process = made()
    process.replies.append(Loaded(1, "abc", ""))
    minder.step(0.0)
    infer(minder, 1.0)
    assert minder.step(6.0) == []
    assert minder.step(6.1) == [Died("an inference took more than 5 s")]
    assert not process.running


def test_a_server_that_could_not_be_had_is_asked_again() -> None:
    minder, process = made("ws://robot:8000")
    process.replies.append(Failed(1, "no policy server there"))
    assert minder.step(0.0) == [Refused("ws://robot:8000", "no policy server there")]
    minder.step(1.9)
    assert process.loads == ["ws://robot:8000"]
    minder.step(2.0)
    assert process.loads == ["ws://robot:8000"] * 2
    minder.step(9.0)  # not while an answer is out
    assert process.loads == ["ws://robot:8000"] * 2
