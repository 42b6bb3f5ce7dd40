"""The pedal in the graph: a device's switches as `joy`, and as calls of the services that they ask for.

The device is one that this machine has (`device`), or whatever publishes sensor_msgs/Joy on `input`: a
gamepad's joy_node, a console. `actions` says what each switch asks for, in `recap_teleop.buttons`' words.
`joy` carries the takeover as its button 0 and then the device's other switches, at once on a change and
steadily else; a device that is gone is silence there, which is what the arbiter's watchdog understands.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from sensor_msgs.msg import Joy

from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, run
from recap_teleop.buttons import TAKEOVER, Buttons, Switch, read_map
from recap_teleop.devices import HotPlug, Pedal
from recap_teleop.devices.event_device import EvdevPedal
from recap_teleop.devices.keyboard import KeyboardPedal, actions_of
from recap_teleop.keys import read_keys
from recap_teleop.nodes.asking import Asker

POLL_HZ = 200.0
SILENT_S = 0.5
KEYBOARD = "keyboard"
ACTIONS = "takeover,success,failure"


class PedalNode(RecapNode):
    NAME = "pedal"
    PARAMETERS = (
        Param("device", "", "'keyboard', or an input device (/dev/input/by-id/...); empty: see input"),
        Param("input", topics.JOY, "without a device: topic of a Joy; another than joy is passed on to joy"),
        Param("keys", "", "key of each button, such as KEY_A,KEY_B; of a keyboard: s=success,q=stop"),
        Param("actions", "", f"what each button asks for; empty: {ACTIONS}, or the keyboard's own"),
        Param("grab", True, "keep the device's keys from everybody else"),
        Param("rate_hz", 50.0, "of joy between changes", "Hz", 20.0, 200.0),
        Param("debounce_s", 0.02, "a contact open for less is still the same press", "s", 0.0, 0.5),
    )

    def configure(self) -> None:
        self._plug = HotPlug(self._open) if self.param("device") else None
        self._buttons = Buttons(self._map(), self.param("debounce_s"))
        self._sent: list[int] | None = None
        self._due_s = 0.0
        self._complained = ""
        self._passes_on = self._plug is not None or self.param("input") != topics.JOY
        self._joy = self.create_publisher(Joy, topics.JOY, qos.EVENT) if self._passes_on else None
        if self._plug is None:
            self.create_subscription(Joy, self.param("input"), self._on_joy, qos.EVENT)
        self._asker = Asker(self, (switch.action for switch in self._buttons.switches), "pedal")

    def _map(self) -> tuple[Switch, ...]:
        if self.param("device") == KEYBOARD:
            if self.param("actions"):
                raise ContractError("actions: a keyboard's keys name theirs; wanted keys, such as s=success")
            return tuple(Switch(index, action) for index, action in enumerate(actions_of(self._keys())))
        switches = read_map(self.param("actions") or ACTIONS)
        if not self.param("device") and self.param("input") == topics.JOY:
            for switch in switches:
                if switch.action == TAKEOVER and (switch.index or switch.side):
                    raise ContractError(
                        f"actions: takeover is {switch.place} of joy, where the arbiter wants button 0: "
                        "have the device publish elsewhere and name that topic (input)"
                    )
        return switches

    def _keys(self) -> dict[str, str]:
        return read_keys([word for word in self.param("keys").split(",") if word])

    def _open(self) -> Pedal:
        device = self.param("device")
        if device == KEYBOARD:
            return KeyboardPedal(self._keys())
        keys = [key.strip() for key in self.param("keys").split(",") if key.strip()]
        pedal = EvdevPedal(device, keys, self.param("grab"))
        switches = len(pedal.read())
        if self.param("actions") and (extra := [s for s in self._buttons.switches if s.index >= switches]):
            pedal.close()
            raise ContractError(
                f"pedal {device} has {switches} buttons, wanted {extra[0].place} for {extra[0].action}"
            )
        return pedal

    def activate(self) -> None:
        if self._plug is not None:
            self.create_ticker(POLL_HZ, self._poll)

    def deactivate(self) -> None:
        if self._plug is not None:
            self._plug.close()
            self._buttons.lost()

    def shutdown(self) -> None:
        self.deactivate()

    # --- a device of this machine ---------------------------------------------------------------------

    def _poll(self) -> None:
        assert self._plug is not None
        now, opened = time.monotonic(), self._plug.opened
        levels = self._plug.poll(now)
        if self._plug.opened > opened:
            self.get_logger().info(f"pedal {self._plug.name or self.param('device')} is there")
        if levels is None:
            self._buttons.lost()
            self._sent = None
            if self._plug.problem != self._complained:
                self._complained = self._plug.problem
                self.complain("pedal", self._complained)
            return
        self._complained = ""
        self._hear(now, [int(level) for level in levels], ())

    # --- a device of somebody else's --------------------------------------------------------------------

    def _on_joy(self, message: Joy) -> None:
        self._hear(time.monotonic(), list(message.buttons), list(message.axes))

    # --- both -----------------------------------------------------------------------------------------------

    def _hear(self, now: float, levels: list[int], axes: Sequence[float]) -> None:
        beyond = 0
        if not self.param("actions"):  # the default map goes as far as the device has buttons
            beyond = max(s.index + 1 for s in self._buttons.switches) - len(levels)
        asked = self._buttons.hear(now, levels + [0] * beyond, axes)
        if self._joy is not None and self._buttons.has_takeover:
            self._publish(now, levels)
        for action in asked:
            self._asker.ask(action)

    def _publish(self, now: float, levels: list[int]) -> None:
        assert self._joy is not None
        taking = {s.index for s in self._buttons.switches if s.action == TAKEOVER and not s.side}
        sent = [int(self._buttons.takeover), *(v for i, v in enumerate(levels) if i not in taking)]
        if self._plug is None or sent != self._sent or now >= self._due_s:
            self._sent, self._due_s = sent, now + 1.0 / self.param("rate_hz")
            message = Joy(buttons=sent)
            message.header.stamp = self.get_clock().now().to_msg()
            self._joy.publish(message)

    def diagnose(self) -> Iterable[Status]:
        yield self._plug_status(self._plug) if self._plug is not None else self._input_status()
        if self._joy is not None and (publishers := self.count_publishers(self._joy.topic_name)) > 1:
            yield Status(
                "exclusive", ERROR, f"{publishers} publishers on {topics.JOY}: they contradict each other"
            )
        yield self._asker.status()

    def _plug_status(self, plug: HotPlug) -> Status:
        values = {"opened": plug.opened, "lost": plug.lost, "down": self._down()}
        if plug.problem:
            return Status("device", ERROR, plug.problem, values)
        return Status("device", OK, f"{self.param('device')} is there", values)

    def _input_status(self) -> Status:
        topic, silent_s = self.param("input"), self._buttons.silent_s(time.monotonic())
        if silent_s == float("inf"):
            return Status("device", WARN, f"no device is named, and nobody publishes {topic}")
        if silent_s > SILENT_S:
            return Status("device", ERROR, f"{topic} silent for {silent_s:.1f} s", {"down": self._down()})
        return Status("device", OK, f"{topic} is heard", {"down": self._down()})

    def _down(self) -> str:
        return ", ".join(self._buttons.down)


def main() -> None:
    run(PedalNode)


if __name__ == "__main__":
    main()
