"""The Euler steps as CUDA graphs: one replay a step in place of some hundred kernel launches from Python.

An expert of 34 layers launches more than a thousand small kernels a step; at batch 1 the GPU would wait for
Python. A graph wants the same addresses each time, so inputs are copied into buffers that stay, and the
prefix, whose length changes with the texts, is padded so that attention runs over multiples of `BUCKET`
keys: a handful of graphs serve all prompts. Padding is masked and changes no result.

What differs between a graph and the eager code is only `record`: with `record_eagerly` the same buffers work
on a CPU, which is how the tests check everything but the capture itself where there is no GPU.

A velocity that is to be differentiated (in-painting, rtc.py) is computed without a graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor

from recap_policy.attention import KeyValue, Rotation
from recap_policy.expert import Commitment, Plan

BUCKET = 64  # keys
MOST_GRAPHS = 16  # the least recently used one goes first
_WARM_UP_RUNS = 3  # before a capture: libraries choose kernels and take their memory then

Velocity = Callable[..., Tensor]  # ActionExpert.forward
Record = Callable[[Callable[[], None]], Callable[[], None]]  # what to do → how to do it again


def record_eagerly(work: Callable[[], None]) -> Callable[[], None]:
    return work


def record_cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture `work`, which must read and write tensors that stay where they are and must not synchronise."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP_RUNS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class StaticExpert:
    """Stands in for `ActionExpert.forward` in inference; the same arguments, the same result."""

    def __init__(self, forward: Velocity, record: Record):
        self._forward, self._record = forward, record
        self._steps: OrderedDict[tuple[Any, ...], _Step] = OrderedDict()

    def __call__(
        self,
        noisy: Tensor,
        time: Tensor,
        prefix: list[KeyValue],
        plan: Plan,
        commitment: Commitment = Commitment(),
    ) -> Tensor:
        if torch.is_grad_enabled() and noisy.requires_grad:
            return self._forward(noisy, time, prefix, plan, commitment)
        own = noisy.shape[1] * noisy.shape[2]
        keys = -(-(prefix[0][0].shape[2] + own) // BUCKET) * BUCKET
        told = tuple(None if part is None else part.shape for part in (commitment.clean, commitment.told))
        key = (noisy.shape, keys, told)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _Step(self._forward, noisy, time, prefix, plan, commitment, keys - own)
            if len(self._steps) > MOST_GRAPHS:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        step.fill(noisy, time, prefix, plan, commitment)
        return step.run(self._record)


class _Step:
    """Buffers of one shape, and what was recorded on them."""

    def __init__(
        self,
        forward: Velocity,
        noisy: Tensor,
        time: Tensor,
        prefix: list[KeyValue],
        plan: Plan,
        commitment: Commitment,
        length: int,
    ):
        """length: of the prefix, padded."""
        self._forward, self._length = forward, length
        self._noisy, self._time = noisy.clone(), time.clone()
        self._commitment = Commitment(
            clean=None if commitment.clean is None else commitment.clean.clone(),
            told=None if commitment.told is None else commitment.told.clone(),
        )
        self._prefix = [(self._room(keys), self._room(values)) for keys, values in prefix]
        rotations, bias = plan
        # Layers share rotations: each distinct one is copied once.
        copies: dict[int, Rotation] = {id(by): (by[0].clone(), by[1].clone()) for by in rotations}
        self._rotations = [copies[id(by)] for by in rotations]
        self._bias = self._padded(bias, prefix[0][0].shape[2])
        self._out = torch.empty_like(noisy)
        self._filled_with: ref[Tensor] | None = None
        self._replay: Callable[[], None] | None = None

    def fill(
        self, noisy: Tensor, time: Tensor, prefix: list[KeyValue], plan: Plan, commitment: Commitment
    ) -> None:
        self._noisy.copy_(noisy)
        self._time.copy_(time)
        for part in ("clean", "told"):  # what is None is so in all that this graph serves: see the key
            mine = getattr(self._commitment, part)
            if mine is not None:
                mine.copy_(getattr(commitment, part))
        rotations, bias = plan
        if self._filled_with is not None and self._filled_with() is bias:
            return  # another Euler step of the same sample
        length = prefix[0][0].shape[2]
        for room, found in zip(self._prefix, prefix, strict=True):
            for own, its in zip(room, found, strict=True):
                own[:, :, :length].copy_(its)
                own[:, :, length:].zero_()  # masked, but an older prefix's NaN would pass through a mask
        distinct = {id(mine): (mine, by) for mine, by in zip(self._rotations, rotations, strict=True)}
        for (cosine, sine), by in distinct.values():
            cosine.copy_(by[0])
            sine.copy_(by[1])
        self._bias.copy_(self._padded(bias, length))
        self._filled_with = ref(bias)

    def run(self, record: Record) -> Tensor:
        if self._replay is None:
            self._replay = record(self._work)
        self._replay()
        return self._out.clone()

    def _work(self) -> None:
        plan = (self._rotations, self._bias)
        self._out.copy_(self._forward(self._noisy, self._time, self._prefix, plan, self._commitment))

    def _room(self, found: Tensor) -> Tensor:
        rows, groups, _, size = found.shape
        return found.new_zeros(rows, groups, self._length, size)

    def _padded(self, bias: Tensor, length: int) -> Tensor:
        """(…, length + own) → (…, self._length + own): what pads the prefix is not seen."""
        known, own = bias[..., :length], bias[..., length:]
        return torch.cat([F.pad(known, (0, self._length - length), value=-torch.inf), own], -1)
