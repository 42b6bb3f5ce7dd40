"""Random histories of everything that can happen to the arbiter, and what must hold whatever happens.

Through the transition table, 100,000 random sequences of events:

 T1  ESTOP is left by RELEASE_ESTOP alone, and only to STOPPED; every state reaches ESTOP in one event.
 T2  POLICY is reached only from HANDING_BACK, TELEOP only from TAKING_OVER.
 T3  A stop holds until RESUME, TAKE_OVER or ESTOP.
 T4  Losing what a state needs ends in HOLD: nobody commands a robot that is not seen, locked, or unwatched.

Through the arbiter's core, at every tick of 100,000 random sequences (3,000 by default, all with --all) of
commands good and bad, presses, locks, episodes, services, silences, resets and late ticks:

 C1  A command is finite, within the positions, the velocity and the acceleration of the contract. Exempt are
     a robot found elsewhere (reset between episodes, moved under an emergency stop), which is held where it
     is, and the emergency stop itself, which does not brake.
 C2  Where nobody is followed the command brakes to a standstill and then repeats itself; never zeros. In
     ESTOP it repeats itself at once.
 C3  A source is followed only while its last valid command is no older than its time-out, and never while
     a lock blocks it.
 C4  The policy is followed only in POLICY and on the way to it, only while an episode runs, never while a
     person claims the robot, and after a hand-back only from a command made since the flush; a person only in
     TELEOP and on the way to it.
 C5  The tick after a press the person commands, if heard, not blocked, no emergency stop, and joints seen.
 C6  ESTOP latches; its release is granted only with no pedal pressed and joint states arriving, and ends in a
     stop; a latched lock's stop is not resumed while it is engaged.
 C7  Every hand-back flushes the policy once, in its first tick.
 C8  Joint states silent for longer than their time-out: nobody is followed.
 C9  The arbiter's log says of every tick what the command said.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from recap_station.contract import Joint, Station
from recap_teleop.arbiter import Arbiter, ArbiterSettings, Command
from recap_teleop.modes import TABLE, Event, Mode, State, next_state
from recap_teleop.sources import LockRow

EVENTS = list(Event)
WISHES = [Event.TAKE_OVER, Event.HAND_BACK, Event.STOP, Event.RESUME, Event.ESTOP, Event.RELEASE_ESTOP]
LOST = {
    Event.STATE_LOST: set(State) - {State.HOLD, State.STOPPED, State.ESTOP},
    Event.LOCKED: set(State) - {State.HOLD, State.STOPPED, State.ESTOP},
    Event.EPISODE_END: set(State) - {State.HOLD, State.STOPPED, State.ESTOP},
    Event.PEDAL_LOST: set(State) - {State.HOLD, State.STOPPED, State.ESTOP},
    Event.POLICY_LOST: {State.POLICY, State.HANDING_BACK},
    Event.EPISODE_LOST: {State.POLICY, State.HANDING_BACK},
    Event.HUMAN_LOST: {State.TELEOP, State.TAKING_OVER},
}


def test_table_over_100000_random_sequences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        sequences = rng.integers(len(EVENTS), size=(1000, 12))
        for sequence in sequences.tolist():
            state = State.HOLD
            for index in sequence:
                event, before = EVENTS[index], state
                state = next_state(before, event)
                if state is not before:
                    assert (before is not State.ESTOP) or (
                        event is Event.RELEASE_ESTOP and state is State.STOPPED
                    ), "T1"
                    assert state is not State.POLICY or before is State.HANDING_BACK, "T2"
                    assert state is not State.TELEOP or before is State.TAKING_OVER, "T2"
                    if before is State.STOPPED:
                        assert event in (Event.RESUME, Event.TAKE_OVER, Event.ESTOP), "T3"
                assert event is not Event.ESTOP or state is State.ESTOP, "T1"
                assert before not in LOST.get(event, ()) or state is State.HOLD, "T4"


# --- the core -----------------------------------------------------------------------------------------

# Limits of several sizes, so that braking takes from one to nine ticks.
STATION = Station(
    "small",
    (
        Joint("slow", -1.0, 1.5, max_velocity=2.0, max_acceleration=12.0, home=0.4),
        Joint("quick", -0.5, 0.5, max_velocity=4.0, max_acceleration=400.0, home=-0.3),
        Joint("gripper", 0.0, 1.0, max_velocity=6.0, max_acceleration=60.0, home=1.0, is_gripper=True),
    ),
    (),
)
TICK = STATION.step_s
STEP = STATION.max_velocity * TICK
CHANGE = STATION.max_acceleration * TICK**2
EPS = 1e-9
GUARD = LockRow("guard", timeout_s=0.3, priority=255)
DOOR = LockRow("door", timeout_s=0.3, priority=10)
CURTAIN = LockRow("curtain", timeout_s=0.3, priority=255, latch=True)
ACTIONS = ["policy", "policy", "policy", "stale", "teleop", "teleop", "bad", "press", "press", "release",
           "lock", "episode", "wish", "wish", "go on", "quiet", "blind", "push", "late"]  # fmt: skip


class History:
    """Plays actions to an arbiter, and keeps books of its own on what was said to it."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.settings = ArbiterSettings(
            handover="slew" if rng.random() < 0.5 else "clutch",
            pedal_style="hold" if rng.random() < 0.7 else "toggle",
            pedal_lock=rng.random() < 0.15,
            handover_s=0.2,
            fresh_timeout_s=0.5,
        )
        self.locks = [row for row in (GUARD, DOOR, CURTAIN) if rng.random() < 0.15]
        self.arbiter = Arbiter(STATION, self.settings, self.locks)
        self.now = 0.0
        self.heard = {"policy": -1e9, "teleop": -1e9}
        self.fresh = False  # a policy command made since the last flush was heard
        self.pressed, self.pedal_s = False, -1e9
        self.pressing = False  # a press since the last tick, and nothing after it that takes it back
        self.locked = {row.topic: (True, -1e9) for row in self.locks}
        self.running = False
        self.seen_s = -1e9
        self.moved = False  # the robot may have been put elsewhere since the last tick
        self.found = STATION.home  # where it was seen last
        self.feed = {"policy": True, "teleop": False, "pedal": True, "locks": True, "states": True}
        self.aims = {"policy": STATION.home.copy(), "teleop": STATION.home.copy()}
        self.pace = {"policy": np.zeros(3), "teleop": np.zeros(3)}  # of the aims, per tick
        self.position = STATION.home.copy()
        self.sent: np.ndarray | None = None
        self.step = np.zeros(3)
        self.state = self.arbiter.state

    # what is said to it

    def say(self, action: str) -> None:
        rng, arbiter = self.rng, self.arbiter
        match action:
            case "policy" | "teleop":
                self.feed[action] = True
                reach = float(rng.choice([0.02, 0.3, 5.0]))
                jump = self.aims[action] + rng.normal(0, reach, 3)
                self.aims[action] = jump if rng.random() < 0.8 else self.position.copy()
                self.pace[action] = STEP * rng.uniform(-1.2, 1.2, 3) * (rng.random() < 0.5)
            case "stale":  # valid, but made before the flush
                self._command("policy", self.aims["policy"], fresh=False)
            case "bad":
                name = str(rng.choice(["policy", "teleop"]))
                bad = [np.full(3, np.nan), np.array([0.0, np.inf, 0.0]), np.zeros(2), np.zeros((3, 1))]
                assert not getattr(arbiter, name)(self.now, bad[rng.integers(4)])
            case "press":
                self.feed["pedal"] = True
                if rng.random() < 0.7:  # else the leader's last word may be long ago
                    self.feed["teleop"] = True
                    self._command("teleop", self.aims["teleop"])
                self._pedal(True)
            case "release":
                self.feed["pedal"] = True
                self._pedal(False)
            case "lock" if self.locks:
                topic = self.locks[rng.integers(len(self.locks))].topic
                self.locked[topic] = (not self.locked[topic][0], self.locked[topic][1])
                self.feed["locks"] = True
                self._hear_locks()
            case "episode":
                self.running = not self.running
                arbiter.episode(self.now, self.running)
                self.pressing &= self.running
            case "wish":
                self._wish(WISHES[rng.integers(len(WISHES))])
            case "go on":  # else most of a history would be spent in HOLD
                self.feed.update(policy=True, pedal=True, locks=True, states=True)
                self.locked = {topic: (False, s) for topic, (_, s) in self.locked.items()}
                self._hear_locks()
                if not self.running:
                    self.running = True
                    arbiter.episode(self.now, True)
                self._wish(Event.RELEASE_ESTOP)
                self._wish(Event.RESUME)
            case "quiet":
                self.feed[str(rng.choice(["policy", "teleop", "pedal", "locks"]))] = False
            case "blind":
                self.feed["states"] = not self.feed["states"]
            case "push":
                self.position = self.position + rng.normal(0, 0.2, 3)
                self.moved = True
            case "late":
                self.now += float(rng.uniform(0, 0.1))

    def _command(self, name: str, aim: np.ndarray, fresh: bool = True) -> None:
        if name == "policy":
            assert self.arbiter.policy(self.now, aim, fresh)
            self.fresh |= fresh and not self.arbiter._flush
        else:
            assert self.arbiter.teleop(self.now, aim)
        self.heard[name] = self.now

    def _pedal(self, pressed: bool) -> None:
        known = self.now - self.pedal_s <= self.settings.pedal_timeout_s
        if pressed and self.settings.pedal_style == "hold":
            self.pressing |= not (self.pressed and known)
        elif not pressed:
            self.pressing = False
        self.pressed, self.pedal_s = pressed, self.now
        self.arbiter.pedal(self.now, pressed)

    def _hear_locks(self) -> None:
        for topic, (engaged, _) in self.locked.items():
            self.locked[topic] = (engaged, self.now)
            self.arbiter.lock(self.now, topic, engaged)

    def _wish(self, event: Event) -> None:
        before = self.arbiter.state
        granted = self.arbiter.event(event, self.now)
        after = self.arbiter.state
        if before is State.ESTOP:
            heard = self.now - self.pedal_s <= self.settings.pedal_timeout_s + EPS
            down = self.pressed and heard
            if event is not Event.RELEASE_ESTOP or down or not self.states_live():
                assert after is State.ESTOP and not granted, "C6"
            else:
                assert after is State.STOPPED and granted, "C6"
        if event is Event.ESTOP:
            assert after is State.ESTOP, "C6"
        if event is Event.RESUME and any(row.latch and self.engaged(row) for row in self.locks):
            assert not granted and after is before, "C6"
        if event in (Event.STOP, Event.ESTOP, Event.HAND_BACK):
            self.pressing = False
        if event is Event.RELEASE_ESTOP and after is not before:
            self.moved = True  # it may have been pushed: held where it is

    # what is known of it

    def engaged(self, row: LockRow) -> bool:
        engaged, heard_s = self.locked[row.topic]
        return engaged or self.now - heard_s > row.timeout_s + EPS

    def blocked(self, source: str) -> bool:
        rows = [row for row in self.locks if source == "policy" or row.priority >= 20]
        silent = self.now - self.pedal_s > self.settings.pedal_timeout_s + EPS
        pedal = self.settings.pedal_lock and source == "policy" and silent
        return pedal or any(self.engaged(row) for row in rows)

    def live(self, source: str) -> bool:
        limit = self.settings.policy_timeout_s if source == "policy" else self.settings.teleop_timeout_s
        return self.now - self.heard[source] <= limit + EPS

    def states_live(self) -> bool:
        return self.now - self.seen_s <= self.settings.state_timeout_s + EPS

    # a tick, and what must hold

    def tick(self) -> Command | None:
        self.now += 1.00123 * TICK  # no time-out falls on a tick to the last bit
        for name in ("policy", "teleop"):
            self.aims[name] = self.aims[name] + self.pace[name]
            if self.feed[name]:
                self._command(name, self.aims[name])
        if self.feed["pedal"]:
            self._pedal(self.pressed)
        if self.feed["locks"]:
            self._hear_locks()
        before = self.arbiter.state
        fresh = self.fresh
        if self.feed["states"]:
            self.seen_s = self.now
            self.found = np.clip(self.position, STATION.lower, STATION.upper)
        command = self.arbiter.tick(self.now, self.position if self.feed["states"] else None)
        logged = self.arbiter.log[-1]
        if command is None:
            assert self.seen_s < 0 and logged.source == "hold"
            assert logged.state.mode in (Mode.HOLD, Mode.ESTOP), "C8"
            self.pressing = False
            return None
        assert (logged.state.mode, logged.source, logged.reason) == (
            command.mode, command.source, command.reason), "C9"  # fmt: skip
        assert logged.state is self.arbiter.state and logged.now_s == self.now, "C9"
        self._check_motion(command)
        self._check_source(command, before, fresh)
        if command.flush:
            self.fresh = False
        elif self.arbiter.state is State.HANDING_BACK and before is not State.HANDING_BACK:
            raise AssertionError("C7: a hand-back that began in this tick did not flush")
        assert not (command.flush and command.source == "policy"), "C7"
        self.pressing = False
        self.position = command.positions
        return command

    def _check_motion(self, command: Command) -> None:
        sent = command.positions
        assert np.isfinite(sent).all(), "C1"
        assert np.all(sent >= STATION.lower) and np.all(sent <= STATION.upper), "C1"
        starts = [] if self.sent is None else [(self.sent, self.step)]
        if self.sent is None or self.moved:
            starts.append((self.found, np.zeros(3)))
        problems = [self._motion_problem(command, sent - start, step) for start, step in starts]
        assert "" in problems, problems[0]
        self.step = sent - starts[problems.index("")][0]
        self.sent, self.moved = sent, False

    def _motion_problem(self, command: Command, step: np.ndarray, before: np.ndarray) -> str:
        """What is wrong with a step, after the one before it."""
        if self.arbiter.state is State.ESTOP:
            return "C2" if step.any() else ""
        if np.any(np.abs(step) > STEP + EPS) or np.any(np.abs(step - before) > CHANGE + EPS):
            return "C1"
        braked = np.sign(before) * np.maximum(np.abs(before) - CHANGE, 0.0)
        return "C2" if command.source == "hold" and np.any(np.abs(step - braked) > EPS) else ""

    def _check_source(self, command: Command, before: State, fresh: bool) -> None:
        source = command.source
        assert (command.mode in (Mode.HOLD, Mode.ESTOP)) <= (source == "hold"), "C2"
        if source != "hold":
            assert self.live(source) and not self.blocked(source), "C3"
            assert self.states_live(), "C8"
        if source == "policy":
            assert command.mode in (Mode.POLICY, Mode.HANDOVER) and self.running and fresh, "C4"
            claims = self.pressed and self.settings.pedal_style == "hold"
            assert not (self.pressing and claims), "C4"
        assert (command.mode is Mode.POLICY) <= (source == "policy"), "C4"
        if source == "teleop":
            assert command.mode in (Mode.TELEOP, Mode.HANDOVER), "C4"
        if self.pressing and self.pressed and before is not State.ESTOP and self.states_live():
            free = self.live("teleop") and not self.blocked("teleop")
            latched = any(row.latch and self.engaged(row) for row in self.locks)
            if free and not latched:
                assert source == "teleop", "C5"


def play(seed: int, actions: int = 14) -> set[State]:
    history = History(np.random.default_rng([87, seed]))
    rng, states = history.rng, set()
    history.say("go on")
    for index in rng.integers(len(ACTIONS), size=actions):
        try:
            history.say(ACTIONS[index])
            for _ in range(int(rng.choice([1, 1, 2, 6, 20], p=[0.3, 0.3, 0.2, 0.15, 0.05]))):
                history.tick()
                states.add(history.arbiter.state)
        except AssertionError as error:
            where = f"seed {seed} at {history.now:.2f} s after {ACTIONS[index]}"
            raise AssertionError(f"{where}: {error}") from error
    return states


def test_core_over_random_histories() -> None:
    states = set().union(*(play(seed) for seed in range(3000)))
    assert states == set(State)  # the histories lead everywhere


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(3000, 103_000, 10_000))
def test_core_over_100000_random_histories(first: int) -> None:
    for seed in range(first, first + 10_000):
        play(seed)


LETS_GO = ("release", "episode", "wish", "quiet", "late", "go on", "press", "lock")


def test_a_person_who_holds_the_pedal_is_never_displaced() -> None:
    """C4 for as long as a press lasts: between its edges, with the pedal heard."""
    for seed in range(300):
        history = History(np.random.default_rng([3, seed]))
        history.say("go on")
        history.tick()
        history.say("press")
        sources = []
        for index in history.rng.integers(len(ACTIONS), size=20):
            action = ACTIONS[index]
            if history.settings.pedal_style == "hold" and action not in LETS_GO:
                history.say(action)
            command = history.tick()
            sources.append(command.source if command else "hold")
        if history.settings.pedal_style == "hold" and not any(row.latch for row in history.locks):
            assert "policy" not in sources


def test_states_of_neighbouring_ticks_are_rows_of_the_table() -> None:
    """Within one tick several rows may be used, never none: every change has an event in the table."""
    reachable = {state: {state} for state in State}
    for _ in range(4):
        for (before, _event), after in TABLE.items():
            for source in State:
                if before in reachable[source]:
                    reachable[source].add(after)
    for seed in range(200):
        history = History(np.random.default_rng([5, seed]))
        history.say("go on")
        seen = [State.HOLD]
        for index in history.rng.integers(len(ACTIONS), size=20):
            history.say(ACTIONS[index])
            history.tick()
            seen.append(history.arbiter.state)
        assert all(after in reachable[before] for before, after in pairwise(seen))
