"""What a person can ask of a cell, as calls of its services: pure."""

from __future__ import annotations

from dataclasses import dataclass

CALM_S = {"start_episode": 60.0, "reset_done": 60.0}  # their answers wait for the reset
CALL_S = 3.0
SERVICES = (
    "start_episode", "end_episode", "reset_done", "undo_label", "mark_stage",
    "take_over", "hand_back", "stop", "resume", "estop", "release_estop",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A service to call. `outcome` is EndEpisode's, 0 for other services; `stage` MarkStage's."""

    service: str
    text: str
    outcome: int = 0
    stage: str = ""

    @property
    def patience_s(self) -> float:
        """How long its answer is waited for."""
        return CALM_S.get(self.service, CALL_S)
