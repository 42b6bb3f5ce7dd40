"""Joints that move an arm's tip as a twist says: damped least squares, in small steps, within all limits.

The tip has a target that the twist carries along, so that errors do not add up to a drift. Each tick a few
Newton steps go there. Where the Jacobian loses rank the steps are damped (Nakamura and Hanafusa 1986), the
more so the smaller its least singular value (Chiaverini, Siciliano and Egeland 1994). A tick that asks for
more than the joints' speed moves the target less far along the same line. The target is kept on a short
leash: what cannot be reached is not stored up to be caught up with later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transforms3d.axangles import axangle2mat
from transforms3d.quaternions import mat2quat, quat2axangle

from recap_station.contract import Station
from recap_teleop.kinematics import Chain, Frame

ITERATIONS = 4
CLOSE_M = 1e-6  # nearer than this is there


@dataclass(frozen=True)
class IkSettings:
    """Lengths in m. A turn of one radian counts as `radian_m`; below the singular value `weak_m` damping
    sets in, up to `damping_m`. `speed` is a fraction of the joints' velocity limits."""

    radian_m: float = 0.2
    weak_m: float = 0.04
    damping_m: float = 0.03
    leash_m: float = 0.005
    leash_rad: float = 0.03
    speed: float = 0.9


class TipDriver:
    """One arm of a station, within that station's limits."""

    def __init__(self, chain: Chain, station: Station, settings: IkSettings | None = None):
        self.chain = chain
        self.settings = settings or IkSettings()
        self._lower, self._upper = station.lower[chain.index], station.upper[chain.index]
        self._step_s = station.step_s
        self._step = station.max_velocity[chain.index] * station.step_s * self.settings.speed
        self._weights = np.array([1.0] * 3 + [self.settings.radian_m] * 3)
        self.place(station.home[chain.index])

    def place(self, joints: np.ndarray) -> None:
        """The arm is at `joints` (n,), and its target is where its tip is."""
        self.joints = np.clip(joints, self._lower, self._upper)
        self.target = self.chain.forward(self.joints)

    def move(self, linear: np.ndarray, angular: np.ndarray) -> np.ndarray:
        """One tick along a twist in the station's frame, (3,) [m/s] and (3,) [rad/s]. → (n,) [rad].

        Finite, within the joints' limits, and no farther than their speed from the joints before, always.
        """
        if not (linear.any() or angular.any()):
            self.place(self.joints)  # hands off is a stop, whatever was still on the leash
            return self.joints.copy()
        target = self._carried(linear, angular, 1.0)
        joints = self._solve(target)
        excess = self._excess(joints)
        if excess > 1.0:
            target = self._carried(linear, angular, 1.0 / excess)
            joints = self._solve(target)
            joints = self.joints + (joints - self.joints) / max(1.0, self._excess(joints))
        self.joints = joints
        self._leash(target)
        return self.joints.copy()

    def _carried(self, linear: np.ndarray, angular: np.ndarray, fraction: float) -> Frame:
        turn = angular * self._step_s * fraction
        return Frame(
            _turn(turn) @ self.target.rotation, self.target.position + linear * self._step_s * fraction
        )

    def _excess(self, joints: np.ndarray) -> float:
        return float(np.max(np.abs(joints - self.joints) / self._step))

    def _solve(self, target: Frame) -> np.ndarray:
        joints = self.joints
        for _ in range(ITERATIONS):
            at, jacobian = self.chain.jacobian(joints)
            error = self._weights * np.concatenate(_difference(target, at))
            if np.linalg.norm(error) < CLOSE_M:
                break
            joints = self._newton(joints, self._weights[:, None] * jacobian, error)
        return joints

    def _newton(self, joints: np.ndarray, jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
        """One damped step. A joint that would leave its range stops there, and the others do the rest."""
        free = np.ones(len(joints), dtype=bool)
        moved = np.zeros(len(joints))
        while free.any():
            moved[free] = self._damped(jacobian[:, free], error - jacobian[:, ~free] @ moved[~free])
            inside = np.clip(joints + moved, self._lower, self._upper) - joints
            leaving = free & (inside != moved)
            moved = inside
            if not leaving.any():
                break
            free &= ~leaving
        return np.clip(joints + moved, self._lower, self._upper)

    def _damped(self, jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
        u, singular, vt = np.linalg.svd(jacobian, full_matrices=False)
        least, weak = float(singular[-1]), self.settings.weak_m
        damping = 0.0 if least >= weak else self.settings.damping_m**2 * (1.0 - (least / weak) ** 2)
        return vt.T @ (singular / (singular**2 + damping + 1e-12) * (u.T @ error))

    def _leash(self, target: Frame) -> None:
        at = self.chain.forward(self.joints)
        away, turn = _difference(target, at)
        away = away * min(1.0, self.settings.leash_m / max(float(np.linalg.norm(away)), 1e-12))
        turn = turn * min(1.0, self.settings.leash_rad / max(float(np.linalg.norm(turn)), 1e-12))
        self.target = Frame(_turn(turn) @ at.rotation, at.position + away)


def _difference(target: Frame, at: Frame) -> tuple[np.ndarray, np.ndarray]:
    """From `at` to `target`: (3,) [m] and the turn as axis times angle (3,) [rad], in the station's frame."""
    axis, angle = quat2axangle(mat2quat(target.rotation @ at.rotation.T))
    angle = angle if angle <= np.pi else angle - 2.0 * np.pi
    return target.position - at.position, np.asarray(axis) * angle


def _turn(vector: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) [rad] → rotation (3, 3)."""
    angle = float(np.linalg.norm(vector))
    return axangle2mat(vector / angle, angle, is_normalized=True) if angle > 1e-12 else np.eye(3)
