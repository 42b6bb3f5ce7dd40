"""The arbiter in the graph: the only publisher of `joint_command`, at 50 Hz, whatever else lives or dies."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from recap_interfaces.msg import ActionChunk, ControlMode, Episode
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, run, to_ns
from recap_teleop.arbiter import Arbiter, ArbiterSettings
from recap_teleop.modes import Event, Mode, State
from recap_teleop.sources import POLICY, SOURCES, TELEOP, LockRow, read_locks
from recap_teleop.trace import TickTrace

_D = ArbiterSettings()
UNSTAMPED_FRESH_S = 0.1  # a policy that publishes no chunks: fresh this long after the flush
# Nobody is followed until whoever listens to the commands has found this publisher: they find it one after
# another, and one that came late would take the motion so far for a jump.
LISTENERS = LockRow(f"wait for listeners to {topics.JOINT_COMMAND}", timeout_s=np.inf)
LISTENERS_S = 1.0  # no new one for this long: all are there


class ArbiterNode(RecapNode):
    NAME = "arbiter"
    REALTIME_PRIORITY = 20
    PARAMETERS = (
        Param(
            "policy_timeout_s", _D.policy_timeout_s, "silence after which the policy is lost", "s", 0.02, 5
        ),
        Param(
            "teleop_timeout_s", _D.teleop_timeout_s, "silence after which the person is lost", "s", 0.02, 5
        ),
        Param("pedal_timeout_s", _D.pedal_timeout_s, "silence after which the pedal is lost", "s", 0.05, 5),
        Param("state_timeout_s", _D.state_timeout_s, "silence after which the joints are lost", "s", 0.05, 5),
        Param(
            "console_timeout_s", _D.console_timeout_s,
            "silence after which a console that has taken over is lost", "s", 0.1, 5,
        ),
        Param("fresh_timeout_s", _D.fresh_timeout_s, "longest wait for a chunk at hand-back", "s", 0.1, 60),
        Param(
            "episode_timeout_s", _D.episode_timeout_s,
            "silence after which an episode control that repeats itself is lost", "s", 0.6, 60,
        ),
        Param("handover", _D.handover, "how the person's command is approached: slew or clutch"),
        Param("handover_speed", _D.handover_speed, "of the velocity limit, at first", "fraction", 0.05, 1),
        Param("handover_s", _D.handover_s, "from a change of hands to all of the limit", "s", 0, 10),
        Param("pedal_style", _D.pedal_style, "hold: teleop while pressed; toggle: a press changes over"),
        Param("pedal_button", 0, "index of the pedal in Joy.buttons", "", 0, 31),
        Param("pedal_lock", _D.pedal_lock, "follow the policy only while a pedal is heard"),
        Param(
            "locks", [""],
            "each 'topic type=Bool timeout_s=0.5 priority=255 latch=false': silent or engaged, it blocks the "
            "sources up to its priority (policy 10, person 20)",
        ),
        Param("trace_file", "", "CSV that gets a line a tick: who commanded and why; empty: none"),
    )  # fmt: skip

    def configure(self) -> None:
        names = ArbiterSettings.__dataclass_fields__
        try:
            settings = ArbiterSettings(**{name: self.param(name) for name in names})
        except ValueError as error:
            raise ContractError(str(error)) from error
        locks = read_locks(self.param("locks"))
        self.arbiter = Arbiter(self.station, settings, (LISTENERS, *locks))
        self._listeners, self._listeners_s = 0, 0.0  # how many, and since when
        self._trace = self._open_trace()
        self._button = self.param("pedal_button")
        self._measured: np.ndarray | None = None
        self._measured_s = 0.0
        self._flushed_ns = 0
        self._chunks_seen = False
        self._chunk_fresh = False
        self._published: tuple[State, str, str] | None = None
        self._mode_due_s = 0.0
        self._command = JointState(name=list(self.station.joint_names))
        self._commands = self.create_publisher(JointState, topics.JOINT_COMMAND, qos.COMMAND)
        self._modes = self.create_publisher(ControlMode, topics.CONTROL_MODE, qos.LATCHED)
        self.create_subscription(JointState, topics.JOINT_STATES, self._on_state, qos.COMMAND)
        heard = {POLICY: self._on_policy, TELEOP: self._on_teleop}
        for row in SOURCES:
            self.create_subscription(JointState, row.topic, heard[row.name], qos.COMMAND)
        for lock in locks:
            self._listen_to(lock)
        self.create_subscription(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        self.create_subscription(Joy, topics.JOY, self._on_joy, qos.EVENT)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        self.create_subscription(Bool, topics.CONSOLE_HOLDS, self._on_console, qos.EVENT)
        for name, event in (
            ("take_over", Event.TAKE_OVER),
            ("hand_back", Event.HAND_BACK),
            ("stop", Event.STOP),
            ("resume", Event.RESUME),
            ("estop", Event.ESTOP),
            ("release_estop", Event.RELEASE_ESTOP),
        ):
            self.create_service(Trigger, name, self._service(event))

    def activate(self) -> None:
        self.create_ticker(self.station.control_rate_hz, self._tick)

    def cleanup(self) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        if self._trace is not None:
            self._trace.close()

    def _open_trace(self) -> TickTrace | None:
        if not self.param("trace_file"):
            return None
        try:
            return TickTrace(Path(self.param("trace_file")).expanduser())
        except OSError as error:
            raise ContractError(f"trace_file {self.param('trace_file')}: {error.strerror}") from error

    def _listen_to(self, lock: LockRow) -> None:
        def on_bool(message: Bool) -> None:
            self.arbiter.lock(time.monotonic(), lock.topic, message.data)

        def on_joy(message: Joy) -> None:
            self.arbiter.lock(time.monotonic(), lock.topic, any(message.buttons))

        kind, callback = (Bool, on_bool) if lock.kind.endswith("Bool") else (Joy, on_joy)
        self.create_subscription(kind, lock.topic, callback, qos.EVENT)

    # --- what comes in ------------------------------------------------------------------------------

    def _on_state(self, message: JointState) -> None:
        self._measured = self.station.vector(message.name, message.position)
        self._measured_s = time.monotonic()

    def _on_policy(self, message: JointState) -> None:
        positions = self._read("policy", message)
        if positions is not None:
            self.arbiter.policy(time.monotonic(), positions, self._is_fresh())

    def _on_teleop(self, message: JointState) -> None:
        positions = self._read("teleop", message)
        if positions is not None:
            self.arbiter.teleop(time.monotonic(), positions)

    def _read(self, source: str, message: JointState) -> np.ndarray | None:
        try:
            return self.station.vector(message.name, message.position)
        except ContractError as error:
            self.arbiter.reject(source, str(error))
            self.complain(f"{source} command rejected", str(error))
            return None

    def _on_chunk(self, message: ActionChunk) -> None:
        self._chunks_seen = True
        self._chunk_fresh |= to_ns(message.header.stamp) >= self._flushed_ns

    def _is_fresh(self) -> bool:
        """Whether policy commands received now come from an observation made after the last flush."""
        if self._chunks_seen:
            return self._chunk_fresh
        return self.now_ns() - self._flushed_ns > UNSTAMPED_FRESH_S * 1e9

    def _on_joy(self, message: Joy) -> None:
        if len(message.buttons) <= self._button:
            found = len(message.buttons)
            raise ContractError(f"joy has {found} buttons, wanted button {self._button} (pedal_button)")
        self.arbiter.pedal(time.monotonic(), bool(message.buttons[self._button]))

    def _on_episode(self, message: Episode) -> None:
        self.arbiter.episode(time.monotonic(), message.state == Episode.RUNNING, message.id)

    def _on_console(self, message: Bool) -> None:
        self.arbiter.console(time.monotonic(), message.data)

    def _service(self, event: Event) -> Any:
        def serve(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            before = self.arbiter.state
            response.success = self.arbiter.event(event, time.monotonic())
            after = self.arbiter.state
            done = f"{event.value}: {before.name} -> {after.name}"
            response.message = done if response.success else f"{event.value}: not granted in {after.name}"
            if not response.success and (why := self.arbiter.refusal(event)):
                response.message += f": {why}"
            return response

        return serve

    # --- what goes out ------------------------------------------------------------------------------

    def _await_listeners(self, now: float) -> None:
        """Open the lock, once and for all, when commands were sent to a steady number of listeners."""
        if not self.arbiter.locks[LISTENERS.topic].engaged(now):
            return
        if (count := self._commands.get_subscription_count()) != self._listeners:
            self._listeners, self._listeners_s = count, now
        if count and now - self._listeners_s > LISTENERS_S:
            self.arbiter.lock(now, LISTENERS.topic, False)

    def _tick(self) -> None:
        now = time.monotonic()
        measured, self._measured = self._measured, None
        command = self.arbiter.tick(now, measured, self._measured_s)
        stamp = self.get_clock().now().to_msg()
        if command is not None:
            if command.flush:
                self._flushed_ns, self._chunk_fresh = to_ns(stamp), False
            self._command.header.stamp = stamp
            self._command.header.frame_id = command.source
            self._command.position = command.positions.tolist()
            self._commands.publish(self._command)
            self._await_listeners(now)
        logged = self.arbiter.log[-1]
        if self._trace is not None:
            self._trace.add(to_ns(stamp), logged)
        said = (logged.state, logged.source, logged.reason)
        if said != self._published or now >= self._mode_due_s or (command and command.flush):
            self._published, self._mode_due_s = said, now + 0.5
            message = ControlMode(mode=int(logged.state.mode), source=logged.source, reason=logged.reason)
            message.header.stamp = stamp
            self._modes.publish(message)

    def diagnose(self) -> Iterable[Status]:
        arbiter, now = self.arbiter, time.monotonic()
        values: dict[str, Any] = {"state": arbiter.state.name, "limited_ticks": arbiter.limited_ticks}
        rejected = 0
        for name, source in arbiter.sources.items():
            values[f"{name}_age_s"] = source.age_s(now)
            values[f"{name}_rejected"] = sum(source.rejected.values())
            rejected += values[f"{name}_rejected"]
            for reason, count in source.rejected.most_common(3):
                values[f"{name} rejected: {reason}"] = count
        level = ERROR if arbiter.mode is Mode.ESTOP else WARN if rejected else OK
        yield Status("mode", level, f"{arbiter.mode.name}: {arbiter.reason}", values)
        for topic, lock in arbiter.locks.items():
            engaged = lock.engaged(now)
            text = lock.why(now) if engaged else f"{topic} open"
            yield Status(f"lock {topic}", WARN if engaged else OK, text, {"age_s": now - lock.received_s})
        if self._trace is not None and self._trace.trouble:
            yield Status("trace", WARN, f"ended: {self._trace.trouble}")
        publishers = self.count_publishers(self._commands.topic_name)
        if publishers > 1:
            yield Status(
                "exclusive",
                ERROR,
                f"{publishers} publishers on {topics.JOINT_COMMAND}, wanted the arbiter alone",
            )


def main() -> None:
    run(ArbiterNode)


if __name__ == "__main__":
    main()
