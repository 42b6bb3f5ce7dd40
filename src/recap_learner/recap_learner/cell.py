"""Where attempts come from, as Algorithm 1 asks for them: a simulator, live nodes, people who record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recap_learner.stages import Report


@dataclass(frozen=True)
class Order:
    """What a cell is asked for. task: its name; bags: folder to fill; store: where their episodes may be made
    meanwhile; policy, value: checkpoints; iteration: k."""

    task: str
    bags: Path
    store: Path
    iteration: int
    policy: Path | None = None
    value: Path | None = None


@dataclass(frozen=True)
class Collection:
    """One way to get attempts. name: of its stage and, under `folder`, its bags; alone: it must keep time, so
    that nothing may run beside it; ours: its bags may be removed to make others with other settings."""

    name: str
    folder: str
    title: str
    settings: Any
    fill: Callable[[Order, Report], dict[str, Any]]
    alone: bool = False
    ours: bool = True


@dataclass(frozen=True)
class Assessment:
    """One way to evaluate a policy. run: attempts of a checkpoint, asked for an indicator ("" for none), into
    an `Evaluation`'s file → their summary; no file where there was nothing to evaluate. inputs: what it reads
    beside the policy."""

    settings: Any
    run: Callable[[Path, str, Path, Report], dict[str, Any]]
    inputs: Sequence[Path] = ()


class Cell(Protocol):
    """Where attempts are made."""

    @property
    def station(self) -> str: ...

    def demonstrations(self, task: str) -> Collection: ...

    def collections(self, task: str, iteration: int) -> Sequence[Collection]: ...

    def evaluation(self, task: str, policy: Path, store: Path) -> Assessment | None:
        """Of a checkpoint; store: the run's episodes. None where it is not evaluated."""
        ...
