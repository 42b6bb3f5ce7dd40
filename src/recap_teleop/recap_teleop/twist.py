"""Twists of a SpaceMouse, a gamepad's stick or a program become a command for whole arms; pure and clockless.

While the person is not followed, the command is what the arbiter sends, tick for tick: a takeover begins
where the arms are. From the first tick that the arbiter follows, the twists carry the tips on from there.
Silence of one of the arms that a person drives ends the commands of all: the arbiter then holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recap_station.contract import ContractError, Station
from recap_teleop.ik import IkSettings, TipDriver
from recap_teleop.kinematics import Chain

FRAMES = ("station", "base", "tip")
MOVED = 0.02  # of a gripper's range: its wanted opening counts once a person has moved it so far


@dataclass(frozen=True)
class TwistSettings:
    """Limits of a twist's lengths in m/s and rad/s; `gripper_speed` in ranges per second while a button is
    held; silences in s. `frame` is that of the twists: the station's, the arm's base or its tip. Commands
    wait for the arbiter where they would be ahead of it by more than `lead_rad`."""

    max_linear: float = 0.25
    max_angular: float = 1.2
    gripper_speed: float = 1.5
    timeout_s: float = 0.2
    command_timeout_s: float = 0.25
    frame: str = "station"
    lead_rad: float = 0.15

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ContractError(f"frame is {self.frame!r}, wanted one of {', '.join(FRAMES)}")


@dataclass
class _Hand:
    """What one arm's device said last."""

    linear: np.ndarray
    angular: np.ndarray
    heard_s: float = -np.inf
    opening: float | None = None  # wanted, as heard
    opening_before: float | None = None  # as heard when the takeover began
    squeeze: float = 0.0  # -1 closes, 1 opens
    squeeze_s: float = -np.inf


class TwistTeleop:
    """See the module's text. `arms` are those driven; all others stay where the takeover found them."""

    def __init__(
        self,
        station: Station,
        chains: Mapping[str, Chain],
        arms: Sequence[str] = (),
        settings: TwistSettings | None = None,
        ik: IkSettings | None = None,
    ):
        self.station, self.settings = station, settings or TwistSettings()
        self.arms = tuple(arms) or tuple(chains)
        for arm in self.arms:
            if arm not in chains:
                raise ContractError(f"no arm {arm!r} (there are: {', '.join(chains)})")
        self._chains = {arm: chains[arm] for arm in self.arms}
        self._drivers = {arm: TipDriver(chain, station, ik) for arm, chain in self._chains.items()}
        self._hands = {arm: _Hand(np.zeros(3), np.zeros(3)) for arm in self.arms}
        self._sent: np.ndarray | None = None  # what the arbiter sends
        self._sent_s = -np.inf
        self._by_person = False
        self._command: np.ndarray | None = None  # ours, while the person is followed

    # --- what comes in ------------------------------------------------------------------------------

    def hear(self, arm: str, now_s: float, linear: Sequence[float], angular: Sequence[float]) -> None:
        """A twist, (3,) [m/s] and (3,) [rad/s]. Raises ContractError where it is not finite."""
        twist = np.array([linear, angular], dtype=np.float64)
        if not np.isfinite(twist).all():
            raise ContractError(f"twist of {arm} is not finite: {twist.ravel().tolist()}")
        hand = self._hands[arm]
        hand.linear = _shortened(twist[0], self.settings.max_linear)
        hand.angular = _shortened(twist[1], self.settings.max_angular)
        hand.heard_s = now_s

    def hear_opening(self, arm: str, opening: float) -> None:
        """Wanted opening of the gripper, 0 closed .. 1 open. Raises ContractError where it is neither."""
        if not 0.0 <= opening <= 1.0:
            raise ContractError(f"gripper of {arm}: wanted 0 closed .. 1 open, found {opening}")
        self._hands[arm].opening = opening

    def hear_squeeze(self, arm: str, now_s: float, closing: bool, opening: bool) -> None:
        """Buttons that close or open the gripper while held; to be heard again and again."""
        hand = self._hands[arm]
        hand.squeeze, hand.squeeze_s = float(opening) - float(closing), now_s

    def follow(self, now_s: float, positions: np.ndarray, by_person: bool) -> None:
        """The arbiter's command (dof,) of a tick, and whether it follows this one."""
        self._sent, self._sent_s = np.array(positions, dtype=np.float64), now_s
        if by_person and not self._by_person:
            self._begin()
        self._by_person = by_person

    # --- what goes out ------------------------------------------------------------------------------

    def silent(self, now_s: float) -> str:
        """Why there is no command, in one line; "" where there is one."""
        if not now_s - self._sent_s <= self.settings.command_timeout_s:
            return "no joint_command is heard: does the arbiter run?"
        for arm, hand in self._hands.items():
            age = now_s - hand.heard_s
            if not age <= self.settings.timeout_s:
                since = "never heard" if np.isinf(age) else f"silent for {age:.1f} s"
                return f"twist of {arm} {since}"
        return ""

    def tick(self, now_s: float) -> np.ndarray | None:
        """One control tick → (dof,), finite and within the joints' limits, or None: see `silent`."""
        if self._sent is None or self.silent(now_s):
            self._command = None  # what comes next begins anew, where the arms then are
            return None
        if not self._by_person:
            return self._sent.copy()
        if self._command is None:
            self._begin()
        assert self._command is not None
        for arm, hand in self._hands.items():
            chain, driver = self._chains[arm], self._drivers[arm]
            if np.abs(driver.joints - self._sent[chain.index]).max() <= self.settings.lead_rad:
                turn = self._frame(chain, driver)
                self._command[chain.index] = driver.move(turn @ hand.linear, turn @ hand.angular)
            if chain.gripper is not None:
                self._command[chain.gripper] = self._opening(hand, self._command[chain.gripper], now_s)
        return self._command.copy()

    # --- inside -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The person takes over from what was sent last."""
        assert self._sent is not None
        self._command = np.clip(self._sent, self.station.lower, self.station.upper)
        for arm, hand in self._hands.items():
            self._drivers[arm].place(self._command[self._chains[arm].index])
            hand.opening_before = hand.opening

    def _frame(self, chain: Chain, driver: TipDriver) -> np.ndarray:
        """(3, 3) that turns a twist into the station's frame."""
        match self.settings.frame:
            case "base":
                return chain.base.rotation
            case "tip":
                return driver.target.rotation
        return np.eye(3)

    def _opening(self, hand: _Hand, now_at: float, now_s: float) -> float:
        if hand.squeeze and now_s - hand.squeeze_s <= self.settings.timeout_s:
            step = hand.squeeze * self.settings.gripper_speed * self.station.step_s
            hand.opening_before = hand.opening  # the button was the later wish
            return float(np.clip(now_at + step, 0.0, 1.0))
        if hand.opening is None:
            return now_at
        if hand.opening_before is not None and abs(hand.opening - hand.opening_before) < MOVED:
            return now_at  # a trigger that rests somewhere drops nothing
        hand.opening_before = None
        return hand.opening


def _shortened(vector: np.ndarray, longest: float) -> np.ndarray:
    """The vector, or as much of it as is allowed."""
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(vector))
    if length <= longest:
        return vector
    largest = float(np.abs(vector).max())
    unit = vector / largest  # first, so that no square overflows
    return unit / float(np.linalg.norm(unit)) * longest
