"""The order of a bring-up, without ROS: which transition is asked for when, and what is said of each node."""

from __future__ import annotations

import random

import pytest

from recap.bringup import MANAGER, NODES, managed, managed_by_default
from recap.lifecycle import ACTIVE, FINALIZED, INACTIVE, UNCONFIGURED, BringUp, Level, read_nodes
from recap_station.contract import ContractError

WORDS = ("station", "arbiter:station", "pedal", "episode:arbiter", "policy:arbiter")
NAMES = [word.partition(":")[0] for word in WORDS]
AFTER = {
    "configure": (UNCONFIGURED, INACTIVE),
    "activate": (INACTIVE, ACTIVE),
    "deactivate": (ACTIVE, INACTIVE),
    "cleanup": (INACTIVE, UNCONFIGURED),
}


class Cell:
    """Nodes that do as they are told, but those in `refuse`."""

    def __init__(self, **settings: float) -> None:
        self.bring = BringUp(read_nodes(WORDS), **settings)  # type: ignore[arg-type]
        self.states = dict.fromkeys(NAMES, UNCONFIGURED)
        self.refuse: set[str] = set()
        self.done: list[tuple[str, str]] = []
        self.now = 0.0

    def run(self, seconds: float) -> list[tuple[str, str]]:
        """→ transitions carried out meanwhile."""
        begin, end = len(self.done), self.now + seconds
        while self.now < end:
            for name in NAMES:
                if name in self.states:
                    self.bring.saw(name, self.states[name])
                else:
                    self.bring.lost(name, self.now)
            if (wanted := self.bring.next(self.now)) is not None:
                name, transition = wanted
                before, after = AFTER[transition]
                assert self.states[name] == before, wanted
                good = name not in self.refuse
                if good:
                    self.states[name] = after
                    self.done.append(wanted)
                self.bring.answered(good, self.now)
            self.now += 0.1
        return self.done[begin:]

    def text(self, name: str) -> str:
        return next(report.text for report in self.bring.report(self.now) if report.name == name)


def test_all_come_up_in_the_order_of_the_list_and_go_down_in_reverse() -> None:
    cell = Cell()
    up = cell.run(5.0)
    assert up == [(name, what) for name in NAMES for what in ("configure", "activate")]
    assert cell.bring.summary(cell.now) == (Level.OK, "5 of 5 nodes active")
    cell.bring.want(False, cell.now)
    down = cell.run(5.0)
    assert down == [(name, what) for name in reversed(NAMES) for what in ("deactivate", "cleanup")]
    assert cell.bring.settled(cell.now)
    assert cell.bring.summary(cell.now) == (Level.OK, "0 of 5 nodes active, wanted none")


def test_a_missing_node_is_named_and_holds_up_only_those_that_need_it() -> None:
    cell = Cell(patience_s=3.0)
    del cell.states["arbiter"]
    cell.run(2.0)
    assert cell.states["pedal"] == UNCONFIGURED  # in order, for a while
    cell.run(3.0)
    assert cell.states["pedal"] == ACTIVE and cell.states["policy"] == UNCONFIGURED
    level, text = cell.bring.summary(cell.now)
    assert (level, text) == (
        Level.ERROR, "2 of 5 nodes active; missing: arbiter; waiting: episode, policy"
    )  # fmt: skip
    assert cell.text("arbiter") == "missing: no answer of its lifecycle for 5 s"
    assert cell.text("policy") == "unconfigured: waits for arbiter"
    assert cell.bring.settled(cell.now)
    cell.states["arbiter"] = UNCONFIGURED
    cell.run(2.0)
    assert cell.bring.reached


def test_a_node_that_refuses_is_asked_again_and_said_why() -> None:
    cell = Cell(retry_s=5.0)
    cell.refuse.add("pedal")
    cell.run(3.0)
    assert cell.states["episode"] == ACTIVE  # a refusal is an answer: nobody waits for it
    cell.bring.complained("pedal", "no such device")
    assert cell.text("pedal") == "refused to configure, 1 times: no such device"
    assert cell.bring.summary(cell.now)[1] == "4 of 5 nodes active; refused: pedal"
    cell.run(4.0)
    assert cell.text("pedal").startswith("refused to configure, 2 times")
    cell.refuse.clear()
    cell.run(6.0)
    assert cell.bring.reached and cell.bring.summary(cell.now)[0] is Level.OK


def test_nodes_whose_processes_were_killed_are_brought_up_again_in_order() -> None:
    cell = Cell()
    cell.run(30.0)
    del cell.states["station"], cell.states["arbiter"]
    cell.run(1.0)
    level, text = cell.bring.summary(cell.now)
    assert level is Level.WARN and "missing: station, arbiter" in text
    cell.states["arbiter"] = UNCONFIGURED  # the first to be back, but it needs the station
    assert cell.run(2.0) == []
    cell.states["station"] = UNCONFIGURED
    assert [name for name, _ in cell.run(2.0)] == ["station", "station", "arbiter", "arbiter"]


def test_nodes_that_start_by_themselves_are_left_alone() -> None:
    cell = Cell()
    cell.states = dict.fromkeys(NAMES, ACTIVE)
    assert cell.run(5.0) == [] and cell.bring.reached


def test_a_manager_that_only_looks_asks_for_nothing_and_still_tells() -> None:
    cell = Cell(up=None)
    del cell.states["policy"]
    assert cell.run(20.0) == []
    assert cell.bring.summary(cell.now) == (Level.ERROR, "0 of 5 nodes active; missing: policy")


def test_a_finalized_node_needs_another_process() -> None:
    cell = Cell()
    cell.states["policy"] = FINALIZED
    cell.run(15.0)
    assert cell.text("policy") == "finalized: its process must be started anew"
    assert cell.bring.settled(cell.now) and not cell.bring.reached


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_meanwhile_needs_come_first_and_the_end_is_reached(seed: int) -> None:
    rng = random.Random(seed)
    cell = Cell(patience_s=1.0, retry_s=0.5)
    nodes = {node.name: node for node in cell.bring.nodes}
    for _ in range(60):
        name = rng.choice(NAMES)
        match rng.randrange(5):
            case 0:
                cell.states.pop(name, None)
            case 1 | 2:
                cell.states.setdefault(name, UNCONFIGURED)
            case 3:
                cell.refuse ^= {name}
            case 4:
                cell.bring.want(rng.random() < 0.7, cell.now)
        before = dict(cell.states)
        for name, transition in cell.run(0.1):
            if transition in ("configure", "activate"):
                assert all(before.get(need) == ACTIVE for need in nodes[name].needs)
            else:
                users = [one for one in nodes.values() if name in one.needs]
                assert all(before.get(one.name) in (None, UNCONFIGURED, FINALIZED) for one in users)
    cell.refuse.clear()
    for name in NAMES:
        cell.states.setdefault(name, UNCONFIGURED)
    cell.bring.want(True, cell.now)
    cell.run(10.0)
    assert cell.bring.reached


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "found none"),
        (["a", "a"], "each once, found 'a'"),
        (["a:b", "b"], "a needs 'b', which does not stand before it"),
        ([":a"], "found ':a'"),
    ],
)
def test_lists_that_no_order_fits_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_nodes(words)


def test_the_bring_up_s_own_list_can_be_read_whatever_is_left_out() -> None:
    assert [node.name for node in read_nodes(managed_by_default())][:2] == ["station", "arbiter"]
    without_cell = [spec for spec in NODES if spec.name != "station"]
    assert read_nodes(managed(without_cell))[0].needs == ()
    assert MANAGER not in [node.name for node in read_nodes(managed(NODES))]
