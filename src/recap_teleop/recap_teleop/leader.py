"""Leader arms: from whatever a leader's driver publishes to a command, and back to the leader's own joints.

Pure and clockless. One row per joint says how the two belong together::

    follower = scale · leader + offset        a negative scale turns the direction round

`config/leaders/*.yaml` holds the rows of a kind of leader; without one, leader and follower have the same
joints. Several drivers may each publish a part of the joints, as two arms with a driver each do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recap_station.contract import ContractError, Station, read_config


@dataclass(frozen=True)
class Row:
    """The follower's `joint`, the leader's name of it, and follower = scale · leader + offset."""

    joint: str
    leader: str
    scale: float = 1.0
    offset: float = 0.0


def identity(station: Station) -> tuple[Row, ...]:
    """Leader and follower have the same joints."""
    return tuple(Row(name, name) for name in station.joint_names)


def load_rows(name_or_path: str, station: Station) -> tuple[Row, ...]:
    """Rows of config/leaders/<name>.yaml or of a path, in the station's order.

    Raises ContractError where a joint of the station has no row or two, a joint is unknown, or a number is
    none that can be undone.
    """
    data, source = read_config("leaders", name_or_path)
    try:
        rows = [Row(**{"leader": row["joint"], **row}) for row in data["joints"]]
        numbers = [(float(row.scale), float(row.offset)) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{source}: not a leader: {error}") from error
    for row, (scale, offset) in zip(rows, numbers, strict=True):
        if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0.0:
            raise ContractError(
                f"{source}: {row.joint}: scale {scale:g}, offset {offset:g}: wanted finite, and a scale not 0"
            )
    leaders = [row.leader for row in rows]
    if twice := [name for name, count in Counter(leaders).items() if count > 1]:
        raise ContractError(f"{source}: the leader's joint {twice[0]!r} stands twice")
    try:
        order = station.vector([row.joint for row in rows], range(len(rows)))
    except ContractError as error:
        raise ContractError(f"{source}: {error}") from error
    return tuple(rows[int(index)] for index in order)


class Leader:
    """The leader's joints as heard last. A message is refused, and counted by reason, if any of it is wrong.

    `timeout_s` is the longest silence of any joint, on the caller's steady clock. `max_age_s` is how far a
    stamp may lie from the receiver's time: more, and the driver sends what is long past, or clocks differ.
    """

    def __init__(self, station: Station, rows: Sequence[Row], timeout_s: float = 0.1, max_age_s: float = 0.5):
        self.station, self.rows = station, tuple(rows)
        self.timeout_s, self.max_age_s = timeout_s, max_age_s
        self.rejected: Counter[str] = Counter()
        self.ignored: set[str] = set()  # joints of the leader that no row names
        self.names = tuple(row.leader for row in self.rows)
        self._scale = np.array([row.scale for row in self.rows], dtype=np.float64)
        self._offset = np.array([row.offset for row in self.rows], dtype=np.float64)
        self._index = {name: index for index, name in enumerate(self.names)}
        self._positions = np.full(len(self.rows), np.nan)  # the leader's own
        self._heard_s = np.full(len(self.rows), -np.inf)
        self._stamp_ns = np.full(len(self.rows), -(2**62), dtype=np.int64)
        self._clock_ns = -(2**62)

    def hear(
        self, now_s: float, clock_ns: int, stamp_ns: int, names: Sequence[str], positions: Sequence[float]
    ) -> bool:
        """One message: `now_s` of the steady clock, `clock_ns` of the clock that stamps come from.

        → False where it was refused; `rejected` says why.
        """
        if clock_ns < self._clock_ns:  # set back: stamps begin anew
            self._stamp_ns[:] = -(2**62)
        self._clock_ns = clock_ns
        if problem := self._problem(clock_ns, stamp_ns, names, positions):
            self.rejected[problem] += 1
            return False
        for name, position in zip(names, positions, strict=True):
            index = self._index.get(name)
            if index is None:
                self.ignored.add(name)
                continue
            self._positions[index], self._heard_s[index] = position, now_s
            self._stamp_ns[index] = stamp_ns
        return True

    def _problem(self, clock_ns: int, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> str:
        if len(names) != len(positions):
            return f"{len(names)} joint names with {len(positions)} positions"
        mine = [self._index[name] for name in names if name in self._index]
        if not mine:
            return "no joint of the leader in it"
        if len(set(mine)) != len(mine):
            return "a joint is named twice"
        if not np.isfinite(np.asarray(positions, dtype=np.float64)).all():
            return "not finite"
        if stamp_ns == 0:
            return "not stamped"
        if abs(clock_ns - stamp_ns) > self.max_age_s * 1e9:
            return f"stamp more than {self.max_age_s:g} s from now"
        last = int(self._stamp_ns[mine].max())
        if stamp_ns <= last:
            return "stamp repeated" if stamp_ns == last else "stamp older than the one before"
        return ""

    def silent(self, now_s: float) -> str:
        """Why there is no command, in one line; "" where there is one."""
        age = now_s - self._heard_s
        stale = np.flatnonzero(~(age <= self.timeout_s))
        if not len(stale):
            return ""
        oldest = int(stale[np.argmax(age[stale])])
        since = "never heard" if np.isinf(age[oldest]) else f"silent for {age[oldest]:.2f} s"
        more = f" ({len(stale)} joints in all)" if len(stale) > 1 else ""
        return f"{self.names[oldest]} {since}{more}"

    def command(self, now_s: float) -> np.ndarray | None:
        """(dof,) in the station's order, unlimited, as the arbiter limits. None while a joint is silent."""
        return None if self.silent(now_s) else self._scale * self._positions + self._offset

    def pose(self, now_s: float) -> np.ndarray | None:
        """(dof,) the leader's own joints in the rows' order; None while one is silent."""
        return None if self.silent(now_s) else self._positions.copy()

    def of_follower(self, positions: np.ndarray) -> np.ndarray:
        """(dof,) of the follower → where the leader's own joints should be for it."""
        return (positions - self._offset) / self._scale


class Mirror:
    """Brings the leader to the follower's pose and keeps it there while nobody holds it.

    From where the leader is, at `speed` of the follower's velocity limits: it must not fly there.
    """

    def __init__(self, leader: Leader, speed: float = 0.3):
        self._leader = leader
        scale = np.array([row.scale for row in leader.rows])
        self._step = np.abs(leader.station.max_velocity * leader.station.step_s / scale) * speed
        self._at: np.ndarray | None = None

    def let_go(self) -> None:
        """A person has it, or nobody knows where it is: the next drive starts from where it then is."""
        self._at = None

    def drive(self, now_s: float, follower: np.ndarray) -> np.ndarray | None:
        """(dof,) command of this tick in the leader's joints; None, and let go, while it is silent."""
        pose = self._leader.pose(now_s)
        if pose is None:
            self._at = None
            return None
        start = pose if self._at is None else self._at
        away = self._leader.of_follower(follower) - start
        self._at = start + np.clip(away, -self._step, self._step)
        return self._at.copy()
