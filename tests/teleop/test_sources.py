"""Sources and locks: the table, and what a parameter may say of a lock."""

from __future__ import annotations

import numpy as np
import pytest

from recap_station.contract import ContractError
from recap_teleop.settings import ArbiterSettings
from recap_teleop.sources import POLICY, SOURCES, TELEOP, Lock, LockRow, Source, read_locks


def test_the_person_goes_first_and_every_source_has_a_topic_and_a_time_out_of_its_own() -> None:
    assert [row.name for row in SOURCES] == [TELEOP, POLICY]
    assert SOURCES[0].priority > SOURCES[1].priority
    assert len({row.topic for row in SOURCES}) == len({row.timeout for row in SOURCES}) == len(SOURCES)
    assert all(getattr(ArbiterSettings(), row.timeout) > 0 for row in SOURCES)


def test_a_source_never_heard_or_heard_badly_is_not_live() -> None:
    source = Source(0.1)
    assert not source.live(0.0)
    assert not source.hear(0.0, np.array([np.nan, 0.0]), 2) and not source.live(0.0)
    assert source.hear(0.0, np.zeros(2), 2) and source.live(0.1) and not source.live(0.11)
    assert dict(source.rejected) == {"not finite": 1}


def test_a_lock_blocks_up_to_its_priority_while_engaged_or_silent() -> None:
    lock = Lock(LockRow("door", timeout_s=0.3, priority=10))
    assert lock.blocks(POLICY, 0.0) and not lock.blocks(TELEOP, 0.0)
    lock.hear(0.0, False)
    assert not lock.blocks(POLICY, 0.3) and lock.blocks(POLICY, 0.31)
    lock.hear(1.0, True)
    assert lock.blocks(POLICY, 1.0) and lock.why(1.0) == "door engaged" and lock.why(2.0) == "door silent"


def test_locks_are_read_from_words() -> None:
    assert read_locks([""]) == ()
    curtain, guard = read_locks(["curtain", "guard/joy type=Joy timeout_s=0.2 priority=10 latch=True"])
    assert curtain == LockRow("curtain", "std_msgs/msg/Bool", 0.5, 255, False)
    assert guard == LockRow("guard/joy", "sensor_msgs/msg/Joy", 0.2, 10, True)


@pytest.mark.parametrize(
    "word", ["a type=Int32", "a timeout_s=0", "a timeout_s=nan", "a latch=maybe", "a prio=3", "a priority=x"]
)
def test_a_wrong_lock_is_named(word: str) -> None:
    with pytest.raises(ContractError, match=f"lock '{word}': found '{word[2:]}', wanted type=Bool or Joy"):
        read_locks([word])


def test_a_lock_may_stand_once() -> None:
    with pytest.raises(ContractError, match="'a' stands twice"):
        read_locks(["a", "a latch=true"])
