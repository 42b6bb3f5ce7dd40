"""The minding of an inference process: it is started, loaded, watched, and replaced when it dies or hangs.

Imports no torch and no ROS, never blocks; time is a steady clock's seconds, passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recap_policy.chunks import Ahead
from recap_policy.inference import Failed, InferenceDied, InferenceProcess, Inferred, Loaded, Reply, WarmUp
from recap_policy.interface import LAYOUT, Sampling, is_remote
from recap_station.contract import ContractError, Station

if TYPE_CHECKING:
    from typing_extensions import Buffer

RESTART_AFTER_S = 1.0
RECONNECT_AFTER_S = 2.0  # a policy server that could not be had is asked for again

Answer = Callable[[Loaded | Failed], None]


@dataclass(frozen=True)
class Opened:
    """A policy is there, warm."""

    path: str
    loaded: Loaded


@dataclass(frozen=True)
class Refused:
    """A policy could not be had; the one before it stays."""

    path: str
    message: str


@dataclass(frozen=True)
class Died:
    """The process is gone, and the policy with it; another is started."""

    message: str


Event = Opened | Refused | Died | Inferred | Failed


class Minder:
    """Keeps `process` at work for one robot. `step` is called at every tick and says what has happened."""

    def __init__(
        self,
        process: InferenceProcess,
        station: Station,
        warm_up: Callable[[], WarmUp],
        checkpoint: str = "",
        value: str = "",
        layout: str = LAYOUT,
        patience_s: float = 15.0,
    ):
        """checkpoint: a folder or ws://host:port to begin with, "": none; value, layout: see
        `InferenceProcess.load`; warm_up: asked at each load; patience_s: an inference that takes longer
        hangs."""
        self._process, self._station, self._warm_up = process, station, warm_up
        self._value, self._layout, self._patience_s = value, layout, patience_s
        self.checkpoint = checkpoint
        self.identity = ""  # of the policy that is loaded
        self.problem = ""  # why there is none, or not the last one asked for
        self.runtime, self.warm_up_s = "", 0.0  # as the process said
        self.deaths = 0
        self._answers: dict[int, tuple[str, Answer | None]] = {}  # by the ticket of the load
        self._inferring_s: float | None = None  # since when an inference is under way, wanted or not
        self._restart_s = self._reconnect_s = 0.0
        self._death = ""  # of the process, not yet told

    @property
    def ready(self) -> bool:
        """Whether an inference can be asked for."""
        return bool(self.identity) and self._process.running and not self._process.busy

    @property
    def loading(self) -> bool:
        return bool(self._answers)

    def waited_s(self, now_s: float) -> float:
        """How long the inference under way has taken; 0 where there is none."""
        return 0.0 if self._inferring_s is None else now_s - self._inferring_s

    def start(self) -> None:
        self._process.start()
        if self.checkpoint:
            self.load(self.checkpoint)

    def stop(self) -> None:
        self._process.stop()

    def load(self, path: str, answer: Answer | None = None) -> None:
        """Ask for another policy; `answer` is called once, whatever comes of it, the process's death too."""
        self._reconnect_s = 0.0
        try:
            ticket = self._process.load(path, self._value, self._station, self._layout, self._warm_up())
        except InferenceDied as error:
            self._death = str(error)
            if answer:
                answer(Failed(0, self._death))
        else:
            self._answers[ticket] = (path, answer)

    def infer(
        self,
        now_s: float,
        jpegs: Mapping[str, Buffer],
        state: np.ndarray,
        prompt: str,
        how: Sampling,
        reset: bool,
        ahead: Ahead | None,
    ) -> int:
        """Ask for a chunk, as `InferenceProcess.infer` → ticket. Raises ContractError where that is not
        possible."""
        try:
            ticket = self._process.infer(jpegs, state, prompt, how, reset, ahead)
        except InferenceDied as error:
            self._death = str(error)
            raise ContractError(self._death) from error
        self._inferring_s = now_s
        return ticket

    def step(self, now_s: float) -> list[Event]:
        """What has happened since the last call."""
        events: list[Event] = []
        try:
            if not self._process.running and not self._death and now_s >= self._restart_s:
                self.start()
            while (reply := self._process.poll()) is not None:
                events.append(self._take(reply, now_s))
        except InferenceDied as error:
            self._death = str(error)
        if self.waited_s(now_s) > self._patience_s:
            self._process.stop(patience_s=0.0)
            self._death = f"an inference took more than {self._patience_s:g} s"
        if self._death:
            events.append(self._bury(now_s))
        elif 0 < self._reconnect_s <= now_s and not self._answers:
            self.load(self.checkpoint)
        return events

    def _take(self, reply: Reply, now_s: float) -> Event:
        if reply.ticket not in self._answers:
            self._inferring_s = None
            if isinstance(reply, Inferred):
                self.identity = reply.policy  # a server's may have changed
            assert not isinstance(reply, Loaded)
            return reply
        assert not isinstance(reply, Inferred)
        path, answer = self._answers.pop(reply.ticket)
        event: Event
        if isinstance(reply, Loaded):
            self.checkpoint, self.identity, self.problem = path, reply.policy, ""
            self.runtime, self.warm_up_s = reply.runtime, reply.seconds
            event = Opened(path, reply)
        else:
            self.problem = reply.message
            if not self.identity and is_remote(self.checkpoint):
                self._reconnect_s = now_s + RECONNECT_AFTER_S
            event = Refused(path, reply.message)
        if answer:
            answer(reply)
        return event

    def _bury(self, now_s: float) -> Died:
        event, self._death = Died(self._death), ""
        self.deaths += 1
        self._restart_s, self._inferring_s = now_s + RESTART_AFTER_S, None
        self.identity, self.problem = "", event.message
        for ticket, (_, answer) in self._answers.items():
            if answer:
                answer(Failed(ticket, event.message))
        self._answers.clear()
        return event
