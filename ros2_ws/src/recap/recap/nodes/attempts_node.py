"""Runs attempts on a graph that is up, and measures the control loop from outside while they run.

    python -m recap.nodes.attempts_node --attempts 6 --seed 100 --out attempts.json

A plain client: it starts each attempt by service, waits for its end, and notes when every command arrived.
Exit code 1 where the graph is not complete or an attempt is not ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from recap_interfaces.msg import ControlMode, Episode
from recap_interfaces.srv import StartEpisode
from sensor_msgs.msg import JointState, Joy

from recap_station import topics
from recap_station.nodes import qos
from recap_station.nodes.base import claim_realtime, to_ns
from recap_station.nodes.discovery import announce_often

PERIOD_S = 0.02
OUTCOMES = {Episode.SUCCESS: "success", Episode.FAILURE: "failure", Episode.DISCARDED: "discarded"}


class AttemptsError(RuntimeError):
    """The graph did not do what was asked for. One readable line."""


@dataclass(frozen=True)
class Attempt:
    id: str
    seed: int
    outcome: str
    reason: str
    duration_s: float
    takeovers: int
    checkpoint: str


@dataclass
class Stream:
    """When the messages of one topic arrived, by stretch of continuous publishing, on the steady clock;
    and when they were stamped, which tells a tick missed from a message that came late."""

    received_s: list[list[float]] = field(default_factory=list)
    stamped_s: list[list[float]] = field(default_factory=list)

    def begin(self) -> None:
        self.received_s.append([])
        self.stamped_s.append([])

    def add(self, message: Any) -> None:
        if self.received_s:
            self.received_s[-1].append(time.monotonic())
            self.stamped_s[-1].append(to_ns(message.header.stamp) / 1e9)


def timing(received_s: list[list[float]], stamped_s: list[list[float]]) -> dict[str, Any]:
    """Rate and periods of stretches of arrivals; between stamps n periods apart n - 1 ticks were missed."""
    periods = np.concatenate(
        [np.diff(stretch) for stretch in received_s if len(stretch) > 1] or [np.zeros(0)]
    )
    if not len(periods):
        return {"messages": 0}
    ticks = np.concatenate([np.diff(stretch) for stretch in stamped_s if len(stretch) > 1])
    counts, _ = np.histogram(np.minimum(periods * 1e3, 59.9), bins=120, range=(0.0, 60.0))
    return {
        "messages": sum(len(stretch) for stretch in received_s),
        "rate_hz": float(1.0 / periods.mean()),
        "period_p50_ms": float(np.percentile(periods, 50) * 1e3),
        "period_p99_ms": float(np.percentile(periods, 99) * 1e3),
        "period_max_ms": float(periods.max() * 1e3),
        "missed_ticks": int(np.maximum(np.round(ticks / PERIOD_S) - 1, 0).sum()),
        "period_histogram": {"from_ms": 0.0, "bin_ms": 0.5, "counts": counts.tolist()},
    }


class AttemptsNode(Node):
    """Hears the graph; `run_attempt` does one attempt."""

    def __init__(self) -> None:
        super().__init__("attempts")
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self.episode = Episode()
        self.mode: int | None = None
        self.measuring = False
        self.takeovers = 0
        self.holds = 0
        self.streams = {topics.POLICY_COMMAND: Stream(), topics.JOINT_COMMAND: Stream()}
        self.press_to_command_s: list[float] = []
        self._pressed = False
        self._pressed_s: float | None = None
        self.start_client = self.create_client(StartEpisode, "start_episode")
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.create_subscription(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self.create_subscription(JointState, topics.POLICY_COMMAND, self._on_policy, qos.COMMAND)
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, qos.COMMAND)
        self.create_subscription(Joy, topics.JOY, self._on_joy, qos.EVENT)

    def missing(self) -> list[str]:
        """What a complete graph has and this one lacks yet."""
        wanted = [
            topics.JOINT_STATES,
            topics.JOINT_COMMAND,
            topics.CONTROL_MODE,
            topics.EPISODE,
            topics.POLICY_COMMAND,
        ]
        lacking = [topic for topic in wanted if not self.count_publishers(topic)]
        if not self.start_client.service_is_ready():
            lacking.append("start_episode")
        return lacking

    def _on_episode(self, message: Episode) -> None:
        self.episode = message
        self.measuring = message.state == Episode.RUNNING
        if self.measuring:
            for stream in self.streams.values():
                stream.begin()

    def _on_mode(self, message: ControlMode) -> None:
        if self.measuring and message.mode != self.mode:
            self.takeovers += message.mode == ControlMode.TELEOP
            self.holds += message.mode == ControlMode.HOLD
            # the policy is silent while a person commands: what it missed counts only where it commands
            self.streams[topics.POLICY_COMMAND].begin()
        self.mode = message.mode

    def _on_policy(self, message: JointState) -> None:
        if self.measuring and self.mode == ControlMode.POLICY:
            self.streams[topics.POLICY_COMMAND].add(message)

    def _on_command(self, message: JointState) -> None:
        if not self.measuring:
            return
        self.streams[topics.JOINT_COMMAND].add(message)
        if self._pressed_s is not None and message.header.frame_id == "teleop":
            self.press_to_command_s.append(time.monotonic() - self._pressed_s)
            self._pressed_s = None

    def _on_joy(self, message: Joy) -> None:
        pressed = bool(message.buttons and message.buttons[0])
        if pressed and not self._pressed and self.measuring:
            self._pressed_s = time.monotonic()
        elif not pressed:
            self._pressed_s = None
        self._pressed = pressed

    # --- one after the other ----------------------------------------------------------------------------

    def spin_until(self, condition: Any, limit_s: float, failure: str) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise AttemptsError(failure)
            self._spinner.spin_once(timeout_sec=0.1)

    def wait_for_graph(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while missing := self.missing():
            if time.monotonic() > deadline:
                raise AttemptsError(f"after {limit_s:.0f} s the graph still lacks {', '.join(missing)}")
            self._spinner.spin_once(timeout_sec=0.2)

    def run_attempt(self, task: str, seed: int) -> Attempt:
        future = self.start_client.call_async(StartEpisode.Request(task=task, seed=seed))
        self.spin_until(future.done, 40.0, "start_episode did not answer within 40 s")
        answer = future.result()
        assert answer is not None
        if not answer.success:
            raise AttemptsError(f"start_episode refused: {answer.message}")
        self.takeovers = 0

        def ended() -> bool:
            return self.episode.id == answer.id and self.episode.state == Episode.ENDED

        self.spin_until(
            lambda: ended() or self.episode.id == answer.id, 5.0, "the episode was never announced"
        )
        limit_s = self.episode.time_limit_s + 10.0
        self.spin_until(ended, limit_s, f"episode {answer.id} was not ended within {limit_s:.0f} s")
        last = self.episode
        return Attempt(
            id=last.id,
            seed=last.seed,
            outcome=OUTCOMES.get(last.outcome, "unknown"),
            reason=last.reason,
            duration_s=last.elapsed_s,
            takeovers=self.takeovers,
            checkpoint=last.checkpoint,
        )

    def result(self, attempts: list[Attempt]) -> dict[str, Any]:
        """What --out gets: the timing of `joint_command` on top, that of the policy's below."""
        presses = np.array(self.press_to_command_s) * 1e3
        policy, command = (timing(s.received_s, s.stamped_s) for s in self.streams.values())
        return {
            "attempts": len(attempts),
            "takeovers": sum(attempt.takeovers for attempt in attempts),
            "holds": self.holds,
            **command,
            "press_to_command_p50_ms": float(np.percentile(presses, 50)) if len(presses) else None,
            "press_to_command_max_ms": float(presses.max()) if len(presses) else None,
            "policy_command": policy,
            "episodes": [asdict(attempt) for attempt in attempts],
        }


def wants_more(takeovers: list[int], attempts: int, wanted: int) -> bool:
    """Whether another attempt is due. takeovers: of each attempt so far; wanted: in all, for which up to as
    many attempts again are made."""
    done = len(takeovers)
    return done < attempts or (sum(takeovers) < wanted and done < 2 * attempts)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="run attempts on a graph that is up, and measure it")
    parser.add_argument("--attempts", type=int, default=6)
    parser.add_argument(
        "--takeovers", type=int, default=0,
        help="go on, to twice as many attempts at most, until a person has taken over so often",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt; then seed + 1, ...")
    parser.add_argument("--task", default="", help="empty: the graph's own")
    parser.add_argument("--out", type=Path, required=True, help="JSON with what was measured")
    parser.add_argument("--wait", type=float, default=90.0, help="seconds to wait for the graph")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    announce_often()
    rclpy.init(args=[])
    node = AttemptsNode()
    claim_realtime(30)  # else it would measure its own waiting for a processor
    attempts: list[Attempt] = []
    code = 0
    try:
        node.wait_for_graph(options.wait)
        while wants_more([a.takeovers for a in attempts], options.attempts, options.takeovers):
            index = len(attempts)
            attempt = node.run_attempt(options.task, options.seed + index)
            attempts.append(attempt)
            count = max(index + 1, options.attempts)
            print(
                f"attempt {index + 1}/{count}: {attempt.outcome} ({attempt.reason}) "
                f"after {attempt.duration_s:.1f} s, {attempt.takeovers} takeovers",
                flush=True,
            )
    except (AttemptsError, KeyboardInterrupt, ExternalShutdownException) as error:
        print(f"attempts: {error or 'interrupted'}", file=sys.stderr)
        code = 1
    if attempts:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(node.result(attempts), indent=2) + "\n")
    node.destroy_node()
    if rclpy.ok():
        rclpy.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
