"""What is recorded, as the console sees it: an interface that the top floor fills in.

Episodes, judgements and runs are the learner's, and this room knows nothing of it. Without an archive the
console has its Live and its Health page.
"""

from __future__ import annotations

from typing import Any, Protocol


class ArchiveError(ValueError):
    """Something asked of the archive cannot be: one readable line."""


class Archive(Protocol):
    """Plain values for JSON. Every method may take a while and is called in a thread of its own; all raise
    ArchiveError. Names come from a browser and are checked here, not by the caller."""

    def attempts(self) -> dict[str, Any]:
        """All episodes: {"rows": […], "problems": […], "agreement": […], "bags_waiting": n}."""

    def attempt(self, episode: str) -> dict[str, Any]:
        """One: ticks, cameras, value, advantage, bands of corrections, stages, rubric, judgements."""

    def image(self, episode: str, camera: str, tick: int) -> bytes:
        """The JPEG of a tick, as it was recorded."""

    def judge(self, who: str, episode: str, kind: str, what: dict[str, Any]) -> dict[str, Any]:
        """Say something of an episode → as `attempt` has it in "judgement"."""

    def undo(self, who: str, episode: str) -> dict[str, Any]:
        """Take back the newest thing said → likewise."""

    def convert(self) -> dict[str, Any]:
        """Turn bags that were recorded since into episodes → {"made": n, "problems": […]}."""

    def runs(self) -> list[dict[str, Any]]:
        """Learning runs, newest first: {"name", …}."""

    def run(self, name: str) -> dict[str, Any]:
        """One run's iterations, gates, lineage and training curves."""

    def plan(self, name: str, steps: dict[str, int]) -> dict[str, Any]:
        """What the learner would do for a run's next iteration, and how long that would take.

        steps: the learner's own, by parameter; 0 or none: the default. → {"run": its folder, "bags": folders
        to hand over besides its own, "iteration", "seconds" (None: no estimate yet), "problem" (why it cannot
        be, or ""), …}
        """
