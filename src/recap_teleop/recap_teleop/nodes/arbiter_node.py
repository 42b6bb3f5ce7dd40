"""The arbiter in the graph: the only publisher of `joint_command`, at 50 Hz, whatever else lives or dies."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from recap_interfaces.msg import ActionChunk, ControlMode, Episode
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import Trigger

from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, run, to_ns
from recap_teleop.arbiter import Arbiter, ArbiterSettings
from recap_teleop.modes import Event, Mode, State

_D = ArbiterSettings()
UNSTAMPED_FRESH_S = 0.1  # a policy that publishes no chunks: fresh this long after the flush


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
        Param("fresh_timeout_s", _D.fresh_timeout_s, "longest wait for a chunk at hand-back", "s", 0.1, 60),
        Param("handover", _D.handover, "how the person's command is approached: slew or clutch"),
        Param("handover_speed", _D.handover_speed, "of the velocity limit, at first", "fraction", 0.05, 1),
        Param("pedal_style", _D.pedal_style, "hold: teleop while pressed; toggle: a press changes over"),
        Param("pedal_button", 0, "index of the pedal in Joy.buttons", "", 0, 31),
        Param("pedal_lock", _D.pedal_lock, "follow the policy only while a pedal is heard"),
    )

    def configure(self) -> None:
        names = ArbiterSettings.__dataclass_fields__
        try:
            settings = ArbiterSettings(**{name: self.param(name) for name in names})
        except ValueError as error:
            raise ContractError(str(error)) from error
        self.arbiter = Arbiter(self.station, settings)
        self._button = self.param("pedal_button")
        self._measured: np.ndarray | None = None
        self._flushed_ns = 0
        self._chunks_seen = False
        self._chunk_fresh = False
        self._published: tuple[Mode, str] | None = None
        self._mode_due_s = 0.0
        self._command = JointState(name=list(self.station.joint_names))
        self._commands = self.create_publisher(JointState, topics.JOINT_COMMAND, qos.COMMAND)
        self._modes = self.create_publisher(ControlMode, topics.CONTROL_MODE, qos.LATCHED)
        self.create_subscription(JointState, topics.JOINT_STATES, self._on_state, qos.COMMAND)
        self.create_subscription(JointState, topics.POLICY_COMMAND, self._on_policy, qos.COMMAND)
        self.create_subscription(JointState, topics.TELEOP_COMMAND, self._on_teleop, qos.COMMAND)
        self.create_subscription(ActionChunk, topics.POLICY_CHUNK, self._on_chunk, qos.EVENT)
        self.create_subscription(Joy, topics.JOY, self._on_joy, qos.EVENT)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
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

    # --- what comes in ------------------------------------------------------------------------------

    def _on_state(self, message: JointState) -> None:
        self._measured = self.station.vector(message.name, message.position)

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
        self.arbiter.episode(time.monotonic(), message.state == Episode.RUNNING)

    def _service(self, event: Event) -> Any:
        def serve(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            before = self.arbiter.state
            response.success = self.arbiter.event(event, time.monotonic())
            after = self.arbiter.state
            done = f"{event.value}: {before.name} -> {after.name}"
            response.message = done if response.success else f"{event.value}: not granted in {after.name}"
            if event is Event.RELEASE_ESTOP and after is State.ESTOP:
                response.message += ": wanted no pedal pressed, and joint states that arrive"
            return response

        return serve

    # --- what goes out ------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        measured, self._measured = self._measured, None
        command = self.arbiter.tick(now, measured)
        stamp = self.get_clock().now().to_msg()
        if command is not None:
            if command.flush:
                self._flushed_ns, self._chunk_fresh = to_ns(stamp), False
            self._command.header.stamp = stamp
            self._command.header.frame_id = command.source
            self._command.position = command.positions.tolist()
            self._commands.publish(self._command)
        source = command.source if command is not None else "hold"
        mode = self.arbiter.mode
        if (mode, source) != self._published or now >= self._mode_due_s or (command and command.flush):
            self._published, self._mode_due_s = (mode, source), now + 0.5
            message = ControlMode(mode=int(mode), source=source, reason=self.arbiter.reason)
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
