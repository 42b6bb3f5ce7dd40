"""The course of an attempt: the cell reset, running, ended with an outcome; pure and clockless."""

from __future__ import annotations

import difflib
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
    RESETTING = 3


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
    stage: str = ""  # as marked by a person
    message: str = ""  # what a person is to do now

    def elapsed_s(self, now_s: float) -> float:
        match self.phase:
            case Phase.IDLE | Phase.RESETTING:
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
        self._labels: list[tuple[Outcome, str]] = []  # outcome and reason before each label of this episode

    def prepare(self, identity: str, seed: int, message: str = "") -> Episode:
        """A new attempt, not yet running: the cell is being reset. `message`: what a person is to do for it.

        Raises EpisodeError while one is on.
        """
        if self.episode.phase in (Phase.RESETTING, Phase.RUNNING):
            state = "being prepared" if self.episode.phase is Phase.RESETTING else "running"
            raise EpisodeError(f"episode {self.episode.id} is {state}; end it first")
        self.episode = Episode(identity, Phase.RESETTING, seed=seed, message=message)
        return self.episode

    def run(self, now_s: float, seed: int) -> Episode:
        """The cell is ready: go."""
        if self.episode.phase is not Phase.RESETTING:
            raise EpisodeError("no episode is being prepared")
        self._labels.clear()
        self.episode = replace(
            self.episode, phase=Phase.RUNNING, seed=seed, started_s=now_s, reason="", message=""
        )
        return self.episode

    def abandon(self, reason: str) -> Episode:
        """Preparing did not work out, or is not wanted any more: back to IDLE."""
        self.episode = replace(self.episode, phase=Phase.IDLE, reason=reason, message="")
        return self.episode

    def recover(self, episode: Episode) -> Episode:
        """Take up an attempt that was running when the process that controlled it ended."""
        if self.episode.phase in (Phase.RESETTING, Phase.RUNNING) or episode.phase is not Phase.RUNNING:
            raise EpisodeError(f"episode {episode.id} cannot be taken up: it is {episode.phase.name}")
        self._labels.clear()
        self.episode = episode
        return episode

    def end(self, now_s: float, outcome: int, reason: str) -> Episode:
        """End the running episode, or put the outcome of the last one right within RELABEL_S.

        An attempt that a person prepares can be discarded. Raises EpisodeError where there is nothing to
        end, or `outcome` is none to end with.
        """
        if outcome not in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.DISCARDED):
            raise EpisodeError(f"wanted outcome 1 (success), 2 (failure) or 3 (discarded), found {outcome:d}")
        outcome = Outcome(outcome)
        match self.episode.phase:
            case Phase.RUNNING:
                ended = replace(self.episode, phase=Phase.ENDED, ended_s=now_s)
            case Phase.ENDED:
                self._check_time(now_s)
                ended = self.episode
            case Phase.RESETTING if self.episode.message and outcome is Outcome.DISCARDED:
                return self.abandon(reason or "discarded")
            case Phase.RESETTING:
                raise EpisodeError(f"episode {self.episode.id} does not run yet: it is being prepared")
            case _:
                raise EpisodeError("no episode is running")
        self._labels.append((self.episode.outcome, self.episode.reason))
        self.episode = replace(ended, outcome=outcome, reason=reason or outcome.name.lower(), message="")
        return self.episode

    def undo(self, now_s: float) -> Episode:
        """Take the last label back, within RELABEL_S of the end: the one before it holds again, or none
        (UNKNOWN). The attempt does not go on. Raises EpisodeError where there is no label to take back."""
        if self.episode.phase is not Phase.ENDED or not self._labels:
            raise EpisodeError("there is no outcome to take back")
        self._check_time(now_s)
        outcome, reason = self._labels.pop()
        self.episode = replace(self.episode, outcome=outcome, reason=reason or "label taken back")
        return self.episode

    def mark(self, stage: str = "") -> Episode:
        """A person says which of the task's stages is on; "" means the one after the last marked.

        Raises EpisodeError outside a running episode, and on a stage that the task has not.
        """
        stages = self.task.stages
        if self.episode.phase is not Phase.RUNNING:
            raise EpisodeError("no episode is running")
        if not stages:
            raise EpisodeError(f"task {self.task.name!r} has no stages")
        if not stage:
            following = stages.index(self.episode.stage) + 1 if self.episode.stage in stages else 0
            if following == len(stages):
                raise EpisodeError(f"{self.episode.stage} is the last of the stages ({', '.join(stages)})")
            stage = stages[following]
        if stage not in stages:
            close = difflib.get_close_matches(stage, stages, n=1, cutoff=0.5)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise EpisodeError(f"no stage {stage!r}{hint} (there are: {', '.join(stages)})")
        self.episode = replace(self.episode, stage=stage)
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

    def _check_time(self, now_s: float) -> None:
        if now_s - self.episode.ended_s > RELABEL_S:
            raise EpisodeError(
                f"episode {self.episode.id} ended {now_s - self.episode.ended_s:.0f} s ago as "
                f"{self.episode.outcome.name.lower()}; its outcome can be changed for {RELABEL_S:.0f} s"
            )
