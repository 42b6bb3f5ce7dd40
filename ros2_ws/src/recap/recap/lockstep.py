"""Many attempts in one process, in lock-step: whenever all of them want a chunk, one pass makes all chunks.

Each attempt has a noise of its own, by its seed, so that what it comes to does not depend on which others are
made beside it, but for rounding: a batch of another size may round otherwise.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recap.attempt import Query, Rollouts, attempt
from recap_learner.evaluation.evaluation import Attempt
from recap_policy.chunks import Chunk
from recap_station.contract import Station, Task
from recap_station.sim.cells import AnyCell

if TYPE_CHECKING:
    import torch

    from recap_policy.runtime import Policy


@dataclass
class _Slot:
    """A cell with the attempt that is made in it."""

    making: Generator[Query, Chunk, Attempt]
    noise: torch.Generator | None
    query: Query | None = None


def in_lockstep(
    rollouts: Rollouts,
    station: Station,
    task: Task,
    cells: Sequence[AnyCell],
    policy: Policy | None,
    seeds: Sequence[int],
) -> list[Attempt]:
    """One attempt a seed, in their order, `rollouts.lockstep` of them at a time; policy: None for scripted
    ones."""
    made: dict[int, Attempt] = {}
    left = list(reversed(seeds))
    slots: dict[int, _Slot | None] = dict.fromkeys(range(min(rollouts.lockstep, len(cells))))
    seed_of: dict[int, int] = {}

    def advance(place: int, chunk: Chunk | None) -> None:
        """On to the next query, with the next seed where an attempt is over."""
        while True:
            slot = slots[place]
            if slot is None:
                if not left:
                    return
                seed = seed_of[place] = left.pop()
                making = attempt(rollouts, station, task, cells[place], seed)
                slot = slots[place] = _Slot(making, policy.generator(seed) if policy else None)
            try:
                slot.query = next(slot.making) if chunk is None else slot.making.send(chunk)
                return
            except StopIteration as done:
                made[seed_of[place]], slots[place], chunk = done.value, None, None

    for place in slots:
        advance(place, None)
    while busy := {place: slot for place, slot in slots.items() if slot is not None}:
        assert policy is not None
        for places in _alike(busy):
            for place, chunk in zip(places, _infer(policy, task, rollouts, busy, places), strict=True):
                advance(place, chunk)
    return [made[seed] for seed in seeds]


def _alike(slots: dict[int, _Slot]) -> list[list[int]]:
    """Places whose queries go into one pass: those that go on from as many commands."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, slot in slots.items():
        assert slot.query is not None
        ahead = slot.query.ahead
        groups.setdefault((len(ahead.positions), ahead.frozen) if ahead else (0, 0), []).append(place)
    return list(groups.values())


def _infer(
    policy: Policy, task: Task, rollouts: Rollouts, slots: dict[int, _Slot], places: Sequence[int]
) -> list[Chunk]:
    queries = [query for place in places if (query := slots[place].query) is not None]
    first = queries[0].ahead
    ahead = None
    if first is not None:
        rest = np.stack([query.ahead.positions for query in queries if query.ahead is not None])
        ahead = replace(first, positions=rest)
    noise = policy.noise([own for place in places if (own := slots[place].noise) is not None])
    states = np.stack([query.state for query in queries])
    prompts = [task.prompt] * len(queries)
    return policy.infer_batch([q.seen for q in queries], states, prompts, rollouts.sampling, ahead, noise)
