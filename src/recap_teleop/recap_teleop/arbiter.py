"""The arbiter: of all who want to command the robot one is followed, at every tick, within limits.

Pure and clockless: the caller passes a steady clock's seconds. Live, `nodes/arbiter_node.py` ticks it at
50 Hz; headless attempts tick it in simulated time. What it promises:

- every tick yields a command once a measured position was seen: finite, and within the limits on position,
  velocity and acceleration (`limits.py`);
- a source is followed only while it is heard (`timeout_s` since its last valid command was received) and no
  lock blocks it (`sources.py`);
- HOLD brakes within the limits and then repeats the last command, or holds the measured position if none
  was sent, never zeros; ESTOP repeats the last command at once;
- in the first tick after a press the person's source commands; after a release the policy is flushed, and
  the robot holds until a command that the policy made from what it sees now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from recap_station import topics
from recap_station.contract import Station
from recap_teleop.displaced import Displaced
from recap_teleop.handover import Clutch, speed_at
from recap_teleop.limits import Limiter
from recap_teleop.modes import Event, Mode, State, next_state
from recap_teleop.settings import ArbiterSettings, Command, Logged
from recap_teleop.sources import LOCK_KINDS, POLICY, PRIORITY, SOURCES, TELEOP, Lock, LockRow, Source

LOG_TICKS = 3000  # a minute of them
CONSOLE_SILENT = "console silent"  # reason of the stop
__all__ = ["Arbiter", "ArbiterSettings", "Command"]

# Whose command a state waits for or follows.
FOLLOWED = {State.POLICY: POLICY, State.HANDING_BACK: POLICY, State.TAKING_OVER: TELEOP, State.TELEOP: TELEOP}


class Arbiter:
    """See the module's text. Methods may be called in any order; the caller's clock never runs back."""

    def __init__(
        self, station: Station, settings: ArbiterSettings | None = None, locks: Sequence[LockRow] = ()
    ):
        self.station = station
        self.settings = settings or ArbiterSettings()
        self.state = State.HOLD
        self.reason = "started"
        self.running = False
        self.sources = {row.name: Source(getattr(self.settings, row.timeout)) for row in SOURCES}
        self.locks = {row.topic: Lock(row) for row in locks}
        self._pedal = Lock(
            LockRow(topics.JOY, LOCK_KINDS[1], self.settings.pedal_timeout_s, PRIORITY[POLICY])
        )
        self.limited_ticks = 0
        self.log: deque[Logged] = deque(maxlen=LOG_TICKS)
        self._limiter = Limiter(station)
        self._displaced = Displaced(station)
        self._clutch = Clutch(station.is_gripper)
        self._measured: np.ndarray | None = None
        self._measured_s = -np.inf
        self._now_s = -np.inf
        self._wanted_by = ""  # "pedal", "person" (a service or a key), or nobody
        self._console_s = np.inf  # when a console that has taken over was last heard
        self._pressed = False
        self._pedal_lost = False
        self._episode = ""
        self._episode_s = np.inf  # when a repeating episode control was last heard
        self._entered_s = -np.inf
        self._fresh = False
        self._flush = False

    def start(self, hold: np.ndarray, now_s: float = 0.0) -> None:
        """Begin a headless attempt: the robot stands at `hold` (dof,), the episode runs."""
        self._measured, self._measured_s = self._limiter.put(np.array(hold, dtype=np.float64)), now_s
        self.episode(now_s, True)

    @property
    def mode(self) -> Mode:
        return self.state.mode

    # --- what comes in ------------------------------------------------------------------------------

    def policy(self, now_s: float, positions: np.ndarray, fresh: bool = True) -> bool:
        """A policy command (dof,). `fresh`: made from an observation later than the last flush, which
        the caller has carried out by then.

        → False where it was rejected; `sources["policy"].rejected` counts the reasons.
        """
        self._advance(now_s)
        accepted = self.sources[POLICY].hear(now_s, positions, self.station.dof)
        self._fresh |= accepted and fresh and not self._flush
        return accepted

    def teleop(self, now_s: float, positions: np.ndarray) -> bool:
        """A person's command (dof,). → False where it was rejected."""
        self._advance(now_s)
        return self.sources[TELEOP].hear(now_s, positions, self.station.dof)

    def reject(self, source: str, reason: str) -> None:
        """Count a command that could not even be read, such as one with an unknown joint."""
        self.sources[source].rejected[reason] += 1

    def lock(self, now_s: float, topic: str, engaged: bool) -> None:
        """A lock's state, heard again and again."""
        self._advance(now_s)
        self.locks[topic].hear(now_s, engaged)

    def pedal(self, now_s: float, pressed: bool) -> None:
        """The pedal's state, heard again and again. Its edges take over and hand back."""
        self._advance(now_s)
        known = not self._pedal.silent(now_s)
        pressing = pressed and not (self._pressed and known)
        releasing = not pressed and (self._pressed or not known)
        self._pressed, self._pedal_lost = pressed, False
        self._pedal.hear(now_s, False)
        if self.settings.pedal_style == "hold":
            if pressing:
                self._want("pedal")
            elif releasing and self._wanted_by == "pedal":
                self._hand_back()
        elif pressing and known:
            if self._wanted_by:
                self._hand_back()
            else:
                self._want("pedal")

    def console(self, now_s: float, holds: bool) -> None:
        """A console's heartbeat: whether a person at it has taken over. While one has, its silence stops
        the robot until a person resumes, since nobody may be there to correct."""
        self._advance(now_s)
        self._console_s = now_s if holds else np.inf

    def episode(self, now_s: float, running: bool, identity: str = "") -> None:
        """An episode runs, or has ended. The policy is followed only while one runs, and, where episode
        control repeats that it does, only while that is heard: else nobody would end the attempt."""
        self._advance(now_s)
        repeated = running and self.running and identity == self._episode
        self._episode, self._episode_s = identity, now_s if repeated else np.inf
        if running == self.running:
            return
        self.running = running
        if not running:
            self._wanted_by = ""  # a pedal still pressed must be pressed again
            self._apply(Event.EPISODE_END)
        elif not self._wanted_by:  # else the person who waits for a lock or a leader comes first
            self._apply(Event.EPISODE_START)

    def event(self, event: Event, now_s: float | None = None) -> bool:
        """A person's wish, by service, key or button. → False where it was not granted; see `refusal`."""
        if now_s is not None:
            self._advance(now_s)
        if self.refusal(event):
            return False
        if event is Event.TAKE_OVER:
            return self._want("person")
        if event is Event.HAND_BACK:
            return self._hand_back()
        before = self.state
        self._apply(event)
        if event is Event.RELEASE_ESTOP and self.state is not before:
            self._limiter.sent = None  # hold where the robot is now, not where it was commanded before
        if event in (Event.STOP, Event.ESTOP):
            self._wanted_by = ""
        return self.state is not before

    def refusal(self, event: Event) -> str:
        """Why a person's wish would not be granted though the table has a row for it; "" where it would."""
        if event is Event.TAKE_OVER and (lock := self._blocking(TELEOP)):
            return lock.why(self._now_s)
        if event is Event.RESUME and (lock := self._latched()):
            return lock.why(self._now_s)
        pressed = self._pressed and not self._pedal.silent(self._now_s)
        if event is Event.RELEASE_ESTOP and (pressed or not self._state_live()):
            return "wanted no pedal pressed, and joint states that arrive"
        return ""

    # --- what goes out ------------------------------------------------------------------------------

    def tick(
        self, now_s: float, measured: np.ndarray | None, measured_s: float | None = None
    ) -> Command | None:
        """One control tick. `measured` (dof,) the robot's position, None where none was received since the
        last tick; `measured_s`: when it was received, None: now.

        → None only before a first measured position: then nothing is safe to send.
        """
        self._advance(now_s)
        command = self._tick(measured, self._now_s if measured_s is None else measured_s)
        source = command.source if command else "hold"
        self.log.append(Logged(self._now_s, self.state, source, self.reason))
        return command

    def _tick(self, measured: np.ndarray | None, measured_s: float) -> Command | None:
        limiter = self._limiter
        seen = measured is not None and bool(np.isfinite(measured).all())
        if seen:
            self._measured, self._measured_s = np.array(measured, dtype=np.float64), measured_s
        self._watch()
        if limiter.sent is None:
            if self._measured is None:
                return None
            limiter.put(self._measured)
        if seen:
            self._notice_reset()
        target, source = self._target()
        if target is not None:
            limiter.follow(target, self._speed())
        elif self.state is State.ESTOP:
            limiter.halt()
        else:
            limiter.brake()
        sent = limiter.sent
        assert sent is not None
        limited = False
        if target is not None:
            reached = bool(np.all(np.abs(limiter.clip(target) - sent) <= limiter.step))
            if self.state is State.TAKING_OVER and reached:
                self._apply(Event.HUMAN_READY)
            elif self.state is State.HANDING_BACK and reached:
                self._apply(Event.POLICY_READY)
            limited = bool(np.any(np.abs(target - sent) > 1e-9))
        self.limited_ticks += limited
        flush, self._flush = self._flush, False
        return Command(sent.copy(), self.state.mode, source, self.reason, flush, limited)

    # --- inside -------------------------------------------------------------------------------------

    def _advance(self, now_s: float) -> None:
        self._now_s = max(self._now_s, now_s)

    def _target(self) -> tuple[np.ndarray | None, str]:
        """Where the tick wants to go, and whose wish that is; (None, "hold") where it is nobody's."""
        name = FOLLOWED.get(self.state)
        source = self.sources[name] if name else None
        if source is None or source.positions is None or not source.live(self._now_s):
            return None, "hold"
        if name == POLICY:
            return (source.positions, POLICY) if self.state is State.POLICY or self._fresh else (None, "hold")
        if self.settings.handover == "clutch":
            if not self._clutch.engaged:
                self._clutch.engage(self._limiter.resting, source.positions)
            return self._clutch.follow(source.positions), TELEOP
        return source.positions, TELEOP

    def _speed(self) -> float:
        """Fraction of the velocity limit that a change of hands leaves."""
        if self.state not in (State.TAKING_OVER, State.HANDING_BACK):
            return 1.0
        since_s = self._now_s - self._entered_s
        return speed_at(since_s, self.settings.handover_speed, self.settings.handover_s)

    def _notice_reset(self) -> None:
        """Between episodes a held robot that was put elsewhere is held there."""
        assert self._measured is not None
        held = not self.running and self.state.mode is Mode.HOLD and not self._limiter.moving.any()
        measured = self._limiter.clip(self._measured)
        if self._displaced.watch(self._now_s, measured, self._limiter.sent if held else None):
            self._limiter.put(measured)

    def _want(self, by: str) -> bool:
        if self.state is State.ESTOP:
            return False
        if self.state is not State.TELEOP:
            self._wanted_by = by
        if not self._blocking(TELEOP):
            self._apply(Event.TAKE_OVER)
        return self.state in (State.TAKING_OVER, State.TELEOP)

    def _hand_back(self) -> bool:
        self._wanted_by = ""
        before = self.state
        self._apply(Event.HAND_BACK)
        if self.state is State.HANDING_BACK and not self.running:
            self._apply(Event.EPISODE_END)  # nobody to hand back to outside an episode
        return self.state is not before

    def _watch(self) -> None:
        """Time-outs, locks, and holds that end because what was missing is there again."""
        now, settings = self._now_s, self.settings
        if not self._state_live():
            self._apply(Event.STATE_LOST)
        if self._wanted_by == "pedal" and self._pedal.silent(now):
            self._wanted_by, self._pressed, self._pedal_lost = "", False, True
            self._apply(Event.PEDAL_LOST)
            if settings.pedal_style == "toggle":
                self._apply(Event.STOP)  # a level says what a person wants when it returns; an edge does not
        if now - self._console_s > settings.console_timeout_s:
            self._console_s = np.inf
            if self._wanted_by == "person":
                self._wanted_by = ""
                self._apply(Event.STOP, CONSOLE_SILENT)
        if lock := self._latched():
            self._wanted_by = ""
            self._apply(Event.STOP, lock.why(now))
        if FOLLOWED.get(self.state) == POLICY and self._wanted_by and not self._blocking(TELEOP):
            self._apply(Event.TAKE_OVER)  # pressed before anything could be followed
        followed = FOLLOWED.get(self.state)
        if followed and (lock := self._blocking(followed)):
            self._apply(Event.LOCKED, lock.why(now))
        if followed == POLICY and self._pedal_lost:
            self._apply(Event.PEDAL_LOST)
        if followed == POLICY and self._episode_lost():
            self._apply(Event.EPISODE_LOST)
        teleop, policy = self.sources[TELEOP], self.sources[POLICY]
        since_s = now - self._entered_s
        match self.state:
            case State.POLICY if not policy.live(now):
                self._apply(Event.POLICY_LOST)
            case State.HANDING_BACK:
                if since_s > settings.fresh_timeout_s or (self._fresh and not policy.live(now)):
                    self._apply(Event.POLICY_LOST)
            case State.TAKING_OVER | State.TELEOP:
                if not teleop.live(now) and since_s > teleop.timeout_s:
                    self._apply(Event.HUMAN_LOST)
            case State.HOLD if self._state_live():
                for row in SOURCES:  # by priority: who wants the robot keeps the lower ones out
                    if self._claims(row.name):
                        if self.sources[row.name].live(now) and not self._blocking(row.name):
                            self._apply(row.back)
                        break

    def _claims(self, source: str) -> bool:
        if source == TELEOP:
            return bool(self._wanted_by)
        return self.running and not self._pedal_lost and not self._episode_lost()

    def _blocking(self, source: str) -> Lock | None:
        """The first lock that keeps the source from commanding."""
        locks = [self._pedal, *self.locks.values()] if self.settings.pedal_lock else self.locks.values()
        return next((lock for lock in locks if lock.blocks(source, self._now_s)), None)

    def _latched(self) -> Lock | None:
        """The first lock that stops the robot until a person resumes."""
        return next((x for x in self.locks.values() if x.row.latch and x.engaged(self._now_s)), None)

    def _episode_lost(self) -> bool:
        return self._now_s - self._episode_s > self.settings.episode_timeout_s

    def _state_live(self) -> bool:
        return self._now_s - self._measured_s <= self.settings.state_timeout_s

    def _apply(self, event: Event, why: str = "") -> None:
        after = next_state(self.state, event)
        if after is self.state:
            return
        self.state, self.reason, self._entered_s = after, why or event.value, self._now_s
        if after is State.HANDING_BACK:
            self._flush, self._fresh = True, False
        elif after is State.TAKING_OVER:
            self._limiter.forget()
        if after is not State.TELEOP:
            self._clutch.release()
