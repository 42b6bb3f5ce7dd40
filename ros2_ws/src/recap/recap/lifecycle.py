"""Bringing lifecycle nodes up in order and down in reverse: pure; the caller passes a steady clock's seconds.

The states and transitions are those of lifecycle_msgs. One transition is asked for at a time. A node is
brought up once the nodes that it needs are active; while a bring-up is young (`patience_s`), also not before
those that stand ahead of it in the list, so that a healthy cell comes up in the same order every time. After
that only those that need it wait for a missing node; whoever comes back later is brought up then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from recap_station.contract import ContractError

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = "unconfigured", "inactive", "active", "finalized"


class Level(Enum):
    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Managed:
    """A node by its name, and the names of those that must be active before it."""

    name: str
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}:{','.join(self.needs)}" if self.needs else self.name


@dataclass(frozen=True)
class Report:
    """How a node stands. `kind` changes only when that does, `text` also counts seconds."""

    name: str
    level: Level
    kind: str
    text: str


@dataclass
class _Node:
    state: str = ""  # "" while it is missing
    missing_s: float = 0.0  # since when
    refused: str = ""  # the transition that failed last
    refused_s: float = 0.0
    tries: int = 0
    reason: str = ""


def read_nodes(words: Sequence[str]) -> tuple[Managed, ...]:
    """Words "name" or "name:need,need" → nodes in order. Raises ContractError where a need does not stand
    before who needs it, a name stands twice, or none is there."""
    nodes: list[Managed] = []
    for word in filter(None, words):
        name, _, needs = word.partition(":")
        node = Managed(name, tuple(filter(None, needs.split(","))))
        before = [one.name for one in nodes]
        if not name or name in before:
            raise ContractError(f"nodes: wanted names, each once, found {word!r}")
        for need in node.needs:
            if need not in before:
                raise ContractError(f"nodes: {name} needs {need!r}, which does not stand before it")
        nodes.append(node)
    if not nodes:
        raise ContractError("nodes: wanted at least one name of a node to manage, found none")
    return tuple(nodes)


@dataclass
class BringUp:
    """`next()` says what to ask for, `report()` how the nodes stand; `saw`, `lost` and `answered` feed it.

    `up`: whether the nodes are wanted active; None: they are only looked at.
    """

    nodes: Sequence[Managed]
    patience_s: float = 10.0
    retry_s: float = 5.0
    now_s: float = 0.0
    up: bool | None = True
    _since_s: float = field(init=False)
    _asked: tuple[str, str] | None = field(default=None, init=False)  # node, transition

    def __post_init__(self) -> None:
        self._since_s = self.now_s
        self._seen = {node.name: _Node(missing_s=self.now_s) for node in self.nodes}

    # --- what comes in ------------------------------------------------------------------------------

    def want(self, up: bool, now_s: float) -> None:
        """Bring all up, or all down."""
        self.up, self._since_s = up, now_s
        for node in self._seen.values():
            node.refused, node.tries = "", 0

    def saw(self, name: str, state: str) -> None:
        """A node told its state."""
        node = self._seen[name]
        if not node.state:  # another process than the one before
            node.refused, node.tries, node.reason = "", 0, ""
        node.state = state

    def lost(self, name: str, now_s: float) -> None:
        """A node does not answer."""
        node = self._seen[name]
        if node.state:
            node.state, node.missing_s = "", now_s

    def complained(self, name: str, reason: str) -> None:
        """What a node says of its failure, for the report."""
        if name in self._seen:
            self._seen[name].reason = reason

    def answered(self, success: bool, now_s: float, reason: str = "") -> None:
        """The transition that `next` gave was carried out, refused, or not answered."""
        assert self._asked is not None, "nothing was asked"
        (name, transition), self._asked = self._asked, None
        node = self._seen[name]
        if success:
            node.refused, node.tries, node.reason = "", 0, ""
            node.state = LEADS_TO[transition]
        else:
            node.refused, node.refused_s, node.tries = transition, now_s, node.tries + 1
            node.reason = reason or node.reason

    # --- what comes out -----------------------------------------------------------------------------

    def next(self, now_s: float) -> tuple[str, str] | None:
        """(node, transition) to ask for now; None where there is nothing to ask, or an answer is awaited."""
        if self._asked is not None or self.up is None:
            return None
        young = now_s - self._since_s < self.patience_s
        for managed in self.nodes if self.up else reversed(self.nodes):
            node = self._seen[managed.name]
            if self._reached(managed):
                continue
            transition = (_UP if self.up else _DOWN).get(node.state)
            waits = node.refused and now_s - node.refused_s < self.retry_s
            if transition and not waits and not self._blocked_by(managed):
                self._asked = managed.name, transition
                return self._asked
            if self.up and young and not node.refused:
                return None  # in order
        return None

    @property
    def reached(self) -> bool:
        """Whether all nodes are where they are wanted."""
        return all(self._reached(node) for node in self.nodes)

    def settled(self, now_s: float) -> bool:
        """Reached, or nothing will change unless something comes back or changes its mind."""
        if self.reached:
            return True
        stuck = all(
            self._reached(node) or not self._seen[node.name].state or self._seen[node.name].refused
            or self._blocked_by(node) or self._seen[node.name].state == FINALIZED
            for node in self.nodes
        )  # fmt: skip
        return self._asked is None and stuck and now_s - self._since_s >= self.patience_s

    def report(self, now_s: float) -> list[Report]:
        return [self._report(node, now_s) for node in self.nodes]

    def summary(self, now_s: float) -> tuple[Level, str]:
        """All nodes in one line."""
        reports = self.report(now_s)
        level = max((report.level for report in reports), key=lambda one: one.value)
        active = sum(node.state == ACTIVE for node in self._seen.values())
        text = f"{active} of {len(self.nodes)} nodes active"
        if self.up is False:
            text += ", wanted none"
        for kind in ("missing", "refused", "finalized", "waits"):
            if names := [report.name for report in reports if report.kind.split()[0] == kind]:
                text += f"; {_NOUN[kind]}: {', '.join(names)}"
        return level, text

    # --- inside -------------------------------------------------------------------------------------

    def _reached(self, managed: Managed) -> bool:
        state = self._seen[managed.name].state
        if self.up is None:
            return True
        return state == ACTIVE if self.up else state in ("", UNCONFIGURED, FINALIZED)

    def _blocked_by(self, managed: Managed) -> list[str]:
        """Nodes that must move first: on the way up those it needs, on the way down those that need it."""
        if self.up:
            return [need for need in managed.needs if self._seen[need].state != ACTIVE]
        users = [node for node in self.nodes if managed.name in node.needs]
        return [node.name for node in users if self._seen[node.name].state in (ACTIVE, INACTIVE)]

    def _report(self, managed: Managed, now_s: float) -> Report:
        name, node = managed.name, self._seen[managed.name]
        if not node.state:
            age_s = now_s - node.missing_s
            late = self.up is not False and age_s >= self.patience_s
            level = Level.ERROR if late else Level.OK if self.up is False else Level.WARN
            kind = "missing for long" if late else "missing"
            return Report(name, level, kind, f"missing: no answer of its lifecycle for {age_s:.0f} s")
        if self._asked is not None and self._asked[0] == name:
            asked = self._asked[1]
            return Report(name, Level.WARN, f"asked {asked}", f"{node.state}: asked to {asked}")
        if node.state == FINALIZED:
            return Report(name, Level.ERROR, "finalized", "finalized: its process must be started anew")
        if node.refused and not self._reached(managed):
            why = node.reason or "it did not say why, its log may"
            text = f"refused to {node.refused}, {node.tries} times: {why}"
            return Report(name, Level.ERROR, f"refused {node.refused} {why}", text)
        blockers = self._blocked_by(managed)
        if not self._reached(managed) and blockers:
            text = f"{node.state}: waits for {', '.join(blockers)}"
            return Report(name, Level.WARN, f"waits {' '.join(blockers)}", text)
        level = Level.OK if self._reached(managed) else Level.WARN
        return Report(name, level, node.state, node.state)


_UP = {UNCONFIGURED: "configure", INACTIVE: "activate"}
_DOWN = {ACTIVE: "deactivate", INACTIVE: "cleanup"}
LEADS_TO = {"configure": INACTIVE, "activate": ACTIVE, "deactivate": INACTIVE, "cleanup": UNCONFIGURED}
_NOUN = {"missing": "missing", "refused": "refused", "finalized": "finalized", "waits": "waiting"}
