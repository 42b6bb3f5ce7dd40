"""The course of an attempt: prepared, running, ended with an outcome; pure and clockless."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum

from recap_station.contract import Task

RELABEL_S = 10.0  # a wrong outcome can be put right for this long


class Phase(IntEnum):
    """As in recap_interfaces/Episode."""

    IDLE = 0
    RUNNING = 1
    ENDED = 2


class Outcome(IntEnum):
    """As in recap_interfaces/Episode."""

    UNKNOWN = 0
    SUCCESS = 1
    FAILURE = 2
    DISCARDED = 3


class EpisodeError(ValueError):
    """What was asked for does not fit the phase. One readable line."""


@dataclass(frozen=True)
class Episode:
    """The attempt under way, or the last one."""

    id: str = ""
    phase: Phase = Phase.IDLE
    outcome: Outcome = Outcome.UNKNOWN
    seed: int = -1
    reason: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0

    def elapsed_s(self, now_s: float) -> float:
        match self.phase:
            case Phase.IDLE:
                return 0.0
            case Phase.RUNNING:
                return now_s - self.started_s
        return self.ended_s - self.started_s


def episode_id(start_ns: int, number: int) -> str:
    """Sortable by start: UTC time to the second and a number that tells apart those of one second."""
    start = datetime.fromtimestamp(start_ns / 1e9, UTC)
    return f"{start:%Y%m%dT%H%M%S}_{number:04d}"


class EpisodeControl:
    """Holds the current episode. Times are seconds of one steady clock."""

    def __init__(self, task: Task):
        self.task = task
        self.episode = Episode()
        self._preparing = False

    def prepare(self, identity: str, seed: int) -> Episode:
        """A new attempt, not yet running: the cell is being reset. Raises EpisodeError while one is on."""
        if self._preparing or self.episode.phase is Phase.RUNNING:
            state = "being prepared" if self._preparing else "running"
            raise EpisodeError(f"episode {self.episode.id} is {state}; end it first")
        self._preparing = True
        self.episode = Episode(identity, seed=seed)
        return self.episode

    def run(self, now_s: float, seed: int) -> Episode:
        """The cell is ready: go."""
        if not self._preparing:
            raise EpisodeError("no episode is being prepared")
        self._preparing = False
        self.episode = replace(self.episode, phase=Phase.RUNNING, seed=seed, started_s=now_s)
        return self.episode

    def abandon(self, reason: str) -> Episode:
        """Preparing did not work out: back to IDLE."""
        self._preparing = False
        self.episode = replace(self.episode, phase=Phase.IDLE, reason=reason)
        return self.episode

    def end(self, now_s: float, outcome: int, reason: str) -> Episode:
        """End the running episode, or put the outcome of the last one right within RELABEL_S.

        Raises EpisodeError where there is nothing to end, or `outcome` is none to end with.
        """
        if outcome not in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.DISCARDED):
            raise EpisodeError(f"wanted outcome 1 (success), 2 (failure) or 3 (discarded), found {outcome:d}")
        outcome = Outcome(outcome)
        match self.episode.phase:
            case Phase.RUNNING:
                ended = replace(self.episode, phase=Phase.ENDED, ended_s=now_s)
            case Phase.ENDED if now_s - self.episode.ended_s <= RELABEL_S and not self._preparing:
                ended = self.episode
            case Phase.ENDED:
                raise EpisodeError(
                    f"episode {self.episode.id} ended {now_s - self.episode.ended_s:.0f} s ago as "
                    f"{self.episode.outcome.name.lower()}; its outcome can be changed for {RELABEL_S:.0f} s"
                )
            case _ if self._preparing:
                raise EpisodeError(f"episode {self.episode.id} does not run yet: it is being prepared")
            case _:
                raise EpisodeError("no episode is running")
        self.episode = replace(ended, outcome=outcome, reason=reason or outcome.name.lower())
        return self.episode

    def judge(self, now_s: float, success: bool = False, failure: bool = False) -> bool:
        """Look at the simulator's truth and the time limit. → True where that ended the episode."""
        if self.episode.phase is not Phase.RUNNING:
            return False
        if self.task.judge == "simulator" and (success or failure):
            self.end(now_s, Outcome.SUCCESS if success else Outcome.FAILURE, "")
            return True
        if self.episode.elapsed_s(now_s) >= self.task.time_limit_s:
            self.end(now_s, Outcome.FAILURE, "time limit")
            return True
        return False
