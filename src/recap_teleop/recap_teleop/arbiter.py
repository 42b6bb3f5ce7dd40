"""The arbiter: of all who want to command the robot one is followed, at every tick, within limits.

Pure and clockless: the caller passes a steady clock's seconds. Live, `nodes/arbiter_node.py` ticks it at
50 Hz; headless attempts tick it in simulated time. What it promises:

- every tick yields a command once a measured position was seen: finite, within the joint limits, and no
  farther from the one before than the velocity limit allows in one tick;
- a source is followed only while it is heard (`timeout_s` since its last valid command was received);
- HOLD is the last command sent, or the measured position if none was sent, never zeros;
- in the first tick after a press the person's source commands; after a release the policy is flushed, and
  the robot holds until a command that the policy made from what it sees now.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from recap_station.contract import Station
from recap_teleop.handover import STYLES, Clutch, slew
from recap_teleop.modes import Event, Mode, State, next_state

RAMP_S = 1.0
HELD_MOVED = 0.05  # rad: an arm found this far from where it is held between episodes was put there


@dataclass(frozen=True)
class ArbiterSettings:
    """Times in seconds. `handover_speed` is a fraction of each joint's velocity limit."""

    policy_timeout_s: float = 0.1
    teleop_timeout_s: float = 0.2
    pedal_timeout_s: float = 0.25
    state_timeout_s: float = 0.25
    fresh_timeout_s: float = 5.0  # how long a hand-back waits for the policy's fresh command
    handover: str = "slew"
    handover_speed: float = 0.5
    pedal_style: str = "hold"  # "hold": teleop while pressed; "toggle": each press changes over
    pedal_lock: bool = False  # follow the policy only while a pedal is heard

    def __post_init__(self) -> None:
        if self.handover not in STYLES:
            raise ValueError(f"handover is {self.handover!r}, wanted one of {', '.join(STYLES)}")
        if self.pedal_style not in ("hold", "toggle"):
            raise ValueError(f"pedal_style is {self.pedal_style!r}, wanted 'hold' or 'toggle'")


@dataclass(frozen=True)
class Command:
    """One tick's output. `positions` (dof,) float64 in the station's order."""

    positions: np.ndarray
    mode: Mode
    source: str  # whose command this is: "policy", "teleop" or "hold"
    reason: str  # the event that led to the mode
    flush: bool  # the policy must drop its chunk and infer from what it sees now
    limited: bool  # the source wanted more than the limits allow


class Source:
    """Last valid command of one source, and when it was received."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self.positions: np.ndarray | None = None
        self.received_s = -np.inf
        self.rejected: Counter[str] = Counter()

    def live(self, now_s: float) -> bool:
        return now_s - self.received_s <= self.timeout_s

    def age_s(self, now_s: float) -> float:
        return now_s - self.received_s


class Arbiter:
    """See the module's text. Methods may be called in any order; the caller's clock never runs back."""

    def __init__(self, station: Station, settings: ArbiterSettings | None = None):
        self.station = station
        self.settings = settings or ArbiterSettings()
        self.state = State.HOLD
        self.reason = "started"
        self.running = False
        self.sources = {
            "policy": Source(self.settings.policy_timeout_s),
            "teleop": Source(self.settings.teleop_timeout_s),
        }
        self.limited_ticks = 0
        self.trace: list[tuple[float, State, str]] = []
        self._step = station.max_velocity * station.step_s
        self._clutch = Clutch(station.is_gripper)
        self._sent: np.ndarray | None = None
        self._measured: np.ndarray | None = None
        self._measured_s = -np.inf
        self._now_s = -np.inf
        self._wanted_by = ""  # "pedal", "person" (a service or a key), or nobody
        self._pressed = False
        self._pedal_s = -np.inf
        self._pedal_lost = False
        self._entered_s = -np.inf
        self._fresh = False
        self._flush = False

    def start(self, hold: np.ndarray, now_s: float = 0.0) -> None:
        """Begin a headless attempt: the robot stands at `hold` (dof,), the episode runs."""
        self._sent = self._clip(np.array(hold, dtype=np.float64))
        self._measured, self._measured_s = self._sent, now_s
        self.episode(now_s, True)

    # --- what comes in ------------------------------------------------------------------------------

    def policy(self, now_s: float, positions: np.ndarray, fresh: bool = True) -> bool:
        """A policy command (dof,). `fresh`: made from an observation later than the last flush, which
        the caller has carried out by then.

        → False where it was rejected; `sources["policy"].rejected` counts the reasons.
        """
        accepted = self._receive("policy", now_s, positions)
        self._fresh |= accepted and fresh and not self._flush
        return accepted

    def teleop(self, now_s: float, positions: np.ndarray) -> bool:
        """A person's command (dof,). → False where it was rejected."""
        return self._receive("teleop", now_s, positions)

    def reject(self, source: str, reason: str) -> None:
        """Count a command that could not even be read, such as one with an unknown joint."""
        self.sources[source].rejected[reason] += 1

    def pedal(self, now_s: float, pressed: bool) -> None:
        """The pedal's state, heard again and again. Its edges take over and hand back."""
        self._now_s = max(self._now_s, now_s)
        known = now_s - self._pedal_s <= self.settings.pedal_timeout_s
        pressing = pressed and not (self._pressed and known)
        releasing = not pressed and (self._pressed or not known)
        self._pressed, self._pedal_s, self._pedal_lost = pressed, now_s, False
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

    def episode(self, now_s: float, running: bool) -> None:
        """An episode began to run, or ended. The policy is followed only while one runs."""
        if running == self.running:
            return
        self._now_s = max(self._now_s, now_s)
        self.running = running
        if not running:
            self._wanted_by = ""  # a pedal still pressed must be pressed again
        self._apply(Event.EPISODE_START if running else Event.EPISODE_END)

    def event(self, event: Event, now_s: float | None = None) -> bool:
        """A person's wish, by service, key or button. → False where it was not granted."""
        if now_s is not None:
            self._now_s = max(self._now_s, now_s)
        if event is Event.TAKE_OVER:
            return self._want("person")
        if event is Event.HAND_BACK:
            return self._hand_back()
        if event is Event.RELEASE_ESTOP and (self._pressed or not self._state_live()):
            return False  # guarded: nobody on the pedal, and the robot's position known
        before = self.state
        self._apply(event)
        if event is Event.RELEASE_ESTOP and self.state is not before:
            self._sent = None  # hold where the robot is now, not where it was commanded before
        if event in (Event.STOP, Event.ESTOP):
            self._wanted_by = ""
        return self.state is not before

    # --- what goes out ------------------------------------------------------------------------------

    def tick(self, now_s: float, measured: np.ndarray | None) -> Command | None:
        """One control tick. `measured` (dof,) the robot's position, None where none was received lately.

        → None only before a first measured position: then nothing is safe to send.
        """
        self._now_s = max(self._now_s, now_s)
        seen = measured is not None and bool(np.isfinite(measured).all())
        if seen:
            self._measured, self._measured_s = np.array(measured, dtype=np.float64), self._now_s
        if self._sent is None:
            if self._measured is None:
                return None
            self._sent = self._clip(self._measured)
        self._watch()
        if seen:
            self._notice_reset()
        last = self._sent
        target, source = self._target(last)
        wanted = self._clip(target)
        self._sent = slew(last, wanted, self._step * self._speed())
        reached = bool(np.all(np.abs(wanted - self._sent) <= self._step))
        if self.state is State.TAKING_OVER and source == "teleop" and reached:
            self._apply(Event.HUMAN_READY)
        elif self.state is State.HANDING_BACK and source == "policy" and reached:
            self._apply(Event.POLICY_READY)
        limited = bool(np.any(np.abs(target - self._sent) > 1e-9))
        self.limited_ticks += limited
        flush, self._flush = self._flush, False
        return Command(self._sent.copy(), self.state.mode, source, self.reason, flush, limited)

    @property
    def mode(self) -> Mode:
        return self.state.mode

    # --- inside -------------------------------------------------------------------------------------

    def _receive(self, name: str, now_s: float, positions: np.ndarray) -> bool:
        source = self.sources[name]
        self._now_s = max(self._now_s, now_s)
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (self.station.dof,):
            source.rejected[f"shape {positions.shape}, wanted ({self.station.dof},)"] += 1
            return False
        if not np.isfinite(positions).all():
            source.rejected["not finite"] += 1
            return False
        source.positions, source.received_s = positions, now_s
        return True

    def _notice_reset(self) -> None:
        """Between episodes a held robot that is found elsewhere was put there: hold it there."""
        if self.running or self.state.mode is not Mode.HOLD or self._measured is None or self._sent is None:
            return
        measured = self._clip(self._measured)
        moved = np.abs(measured - self._sent)[
            ~self.station.is_gripper
        ]  # one that grips is not where it is told
        if moved.max() > HELD_MOVED:
            self._sent = measured

    def _speed(self) -> float:
        """Fraction of the velocity limit: `handover_speed` at the change of hands, all of it 1 s later."""
        if self.state not in (State.TAKING_OVER, State.HANDING_BACK):
            return 1.0
        slow = self.settings.handover_speed
        return slow + (1.0 - slow) * min(1.0, (self._now_s - self._entered_s) / RAMP_S)

    def _want(self, by: str) -> bool:
        if self.state is State.ESTOP:
            return False
        if self.state is not State.TELEOP:
            self._wanted_by = by
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
        """Time-outs, and holds that end because what was missing is there again."""
        now, settings = self._now_s, self.settings
        pedal_live = now - self._pedal_s <= settings.pedal_timeout_s
        if not self._state_live():
            self._apply(Event.STATE_LOST)
        if self._wanted_by == "pedal" and not pedal_live:
            self._wanted_by, self._pressed, self._pedal_lost = "", False, True
            self._apply(Event.PEDAL_LOST)
            if settings.pedal_style == "toggle":
                self._apply(Event.STOP)  # a level says what a person wants when it returns; an edge does not
        policy_allowed = self.running and not self._pedal_lost and (pedal_live or not settings.pedal_lock)
        teleop, policy = self.sources["teleop"], self.sources["policy"]
        since_s = now - self._entered_s
        match self.state:
            case State.POLICY:
                if not policy_allowed:
                    self._apply(Event.PEDAL_LOST)
                elif not policy.live(now):
                    self._apply(Event.POLICY_LOST)
            case State.HANDING_BACK:
                if not policy_allowed:
                    self._apply(Event.PEDAL_LOST)
                elif since_s > settings.fresh_timeout_s or (self._fresh and not policy.live(now)):
                    self._apply(Event.POLICY_LOST)
            case State.TAKING_OVER | State.TELEOP:
                if not teleop.live(now) and since_s > teleop.timeout_s:
                    self._apply(Event.HUMAN_LOST)
            case State.HOLD if self._state_live():
                if self._wanted_by and teleop.live(now):
                    self._apply(Event.TAKE_OVER)
                elif not self._wanted_by and policy_allowed and policy.live(now):
                    self._apply(Event.POLICY_BACK)

    def _target(self, last: np.ndarray) -> tuple[np.ndarray, str]:
        """Where the tick wants to go, and whose wish that is."""
        if self.state in (State.TAKING_OVER, State.TELEOP):
            teleop = self.sources["teleop"]
            if teleop.positions is not None and teleop.live(self._now_s):
                if self.settings.handover == "clutch":
                    if not self._clutch.engaged:
                        self._clutch.engage(last, teleop.positions)
                    return self._clutch.follow(teleop.positions), "teleop"
                return teleop.positions, "teleop"
        policy = self.sources["policy"].positions
        if policy is not None and (
            self.state is State.POLICY or (self.state is State.HANDING_BACK and self._fresh)
        ):
            return policy, "policy"
        return last, "hold"

    def _apply(self, event: Event) -> None:
        after = next_state(self.state, event)
        if after is self.state:
            return
        self.state, self.reason, self._entered_s = after, event.value, self._now_s
        if len(self.trace) < 1_000_000:
            self.trace.append((self._now_s, after, event.value))
        if after is State.HANDING_BACK:
            self._flush, self._fresh = True, False
        if after is not State.TELEOP:
            self._clutch.release()

    def _state_live(self) -> bool:
        return self._now_s - self._measured_s <= self.settings.state_timeout_s

    def _clip(self, positions: np.ndarray) -> np.ndarray:
        return np.clip(positions, self.station.lower, self.station.upper)
