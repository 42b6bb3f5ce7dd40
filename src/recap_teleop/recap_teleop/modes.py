"""Who commands the robot: the states, the events, and the one table that says which leads where.

What is published is the coarser `Mode` (ControlMode.msg). Two states share HANDOVER, because the table
must know which way; two share HOLD, because a hold that the watchdog ordered ends by itself when what
was missing returns, and one that a person ordered ends only when a person says so.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto


class Mode(IntEnum):
    """As in recap_interfaces/ControlMode."""

    POLICY = 0
    HANDOVER = 1
    TELEOP = 2
    HOLD = 3
    ESTOP = 4


class State(Enum):
    POLICY = auto()
    TAKING_OVER = auto()  # from whatever was to the person: the person's source already commands
    TELEOP = auto()
    HANDING_BACK = auto()  # to the policy: holds until its first command made from what it sees now
    HOLD = auto()  # nobody may command; ends by itself
    STOPPED = auto()  # a person said stop; ends by RESUME or by taking over
    ESTOP = auto()  # latched

    @property
    def mode(self) -> Mode:
        return _MODES[self]


class Event(Enum):
    TAKE_OVER = "take over"
    HUMAN_READY = "person's command reached"
    HAND_BACK = "hand back"
    POLICY_READY = "fresh policy command reached"
    POLICY_BACK = "policy is there"
    HUMAN_LOST = "teleop silent"
    POLICY_LOST = "policy silent"
    PEDAL_LOST = "pedal silent"
    STATE_LOST = "joint states silent"
    LOCKED = "locked"
    EPISODE_LOST = "episode control silent"
    EPISODE_START = "episode started"
    EPISODE_END = "episode ended"
    STOP = "stop"
    RESUME = "resume"
    ESTOP = "emergency stop"
    RELEASE_ESTOP = "emergency stop released"


_MODES = {
    State.POLICY: Mode.POLICY,
    State.TAKING_OVER: Mode.HANDOVER,
    State.TELEOP: Mode.TELEOP,
    State.HANDING_BACK: Mode.HANDOVER,
    State.HOLD: Mode.HOLD,
    State.STOPPED: Mode.HOLD,
    State.ESTOP: Mode.ESTOP,
}

TABLE: dict[tuple[State, Event], State] = {
    (State.POLICY, Event.TAKE_OVER): State.TAKING_OVER,
    (State.POLICY, Event.POLICY_LOST): State.HOLD,
    (State.POLICY, Event.PEDAL_LOST): State.HOLD,
    (State.POLICY, Event.STATE_LOST): State.HOLD,
    (State.POLICY, Event.LOCKED): State.HOLD,
    (State.POLICY, Event.EPISODE_LOST): State.HOLD,
    (State.POLICY, Event.EPISODE_END): State.HOLD,
    (State.POLICY, Event.STOP): State.STOPPED,
    (State.POLICY, Event.ESTOP): State.ESTOP,
    #
    (State.TAKING_OVER, Event.HUMAN_READY): State.TELEOP,
    (State.TAKING_OVER, Event.HAND_BACK): State.HANDING_BACK,
    (State.TAKING_OVER, Event.HUMAN_LOST): State.HOLD,
    (State.TAKING_OVER, Event.PEDAL_LOST): State.HOLD,
    (State.TAKING_OVER, Event.STATE_LOST): State.HOLD,
    (State.TAKING_OVER, Event.LOCKED): State.HOLD,
    (State.TAKING_OVER, Event.EPISODE_END): State.HOLD,
    (State.TAKING_OVER, Event.STOP): State.STOPPED,
    (State.TAKING_OVER, Event.ESTOP): State.ESTOP,
    #
    (State.TELEOP, Event.HAND_BACK): State.HANDING_BACK,
    (State.TELEOP, Event.HUMAN_LOST): State.HOLD,
    (State.TELEOP, Event.PEDAL_LOST): State.HOLD,
    (State.TELEOP, Event.STATE_LOST): State.HOLD,
    (State.TELEOP, Event.LOCKED): State.HOLD,
    (State.TELEOP, Event.EPISODE_END): State.HOLD,
    (State.TELEOP, Event.STOP): State.STOPPED,
    (State.TELEOP, Event.ESTOP): State.ESTOP,
    #
    (State.HANDING_BACK, Event.POLICY_READY): State.POLICY,
    (State.HANDING_BACK, Event.TAKE_OVER): State.TAKING_OVER,
    (State.HANDING_BACK, Event.POLICY_LOST): State.HOLD,
    (State.HANDING_BACK, Event.PEDAL_LOST): State.HOLD,
    (State.HANDING_BACK, Event.STATE_LOST): State.HOLD,
    (State.HANDING_BACK, Event.LOCKED): State.HOLD,
    (State.HANDING_BACK, Event.EPISODE_LOST): State.HOLD,
    (State.HANDING_BACK, Event.EPISODE_END): State.HOLD,
    (State.HANDING_BACK, Event.STOP): State.STOPPED,
    (State.HANDING_BACK, Event.ESTOP): State.ESTOP,
    #
    (State.HOLD, Event.TAKE_OVER): State.TAKING_OVER,
    (State.HOLD, Event.EPISODE_START): State.HANDING_BACK,
    (State.HOLD, Event.POLICY_BACK): State.HANDING_BACK,
    (State.HOLD, Event.STOP): State.STOPPED,
    (State.HOLD, Event.ESTOP): State.ESTOP,
    #
    (State.STOPPED, Event.TAKE_OVER): State.TAKING_OVER,
    (State.STOPPED, Event.RESUME): State.HOLD,
    (State.STOPPED, Event.ESTOP): State.ESTOP,
    #
    (State.ESTOP, Event.RELEASE_ESTOP): State.STOPPED,
}


def next_state(state: State, event: Event) -> State:
    """Where the event leads; the same state where the table has no row for it."""
    return TABLE.get((state, event), state)
