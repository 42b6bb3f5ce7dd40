"""The pedal in the graph: a device's switches as sensor_msgs/Joy, at once on a change and steadily else."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sensor_msgs.msg import Joy

from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, Param, RecapNode, Status, run
from recap_teleop.pedal import Pedal, PedalLost, open_pedal

RETRY_S = 1.0


class PedalNode(RecapNode):
    """Without a device it publishes nothing: silence is what the arbiter's watchdog understands. A device
    that is missing or pulled out is looked for again every second."""

    NAME = "pedal"
    PARAMETERS = (
        Param("device", "", "'keyboard', or an input device (/dev/input/by-id/...); empty: no pedal"),
        Param("keys", [""], "key of each button, such as KEY_A; empty: all the device has"),
        Param("grab", True, "keep the device's keys from everybody else"),
        Param("rate_hz", 50.0, "of joy between changes", "Hz", 20.0, 200.0),
        Param("required", True, "a device that is named but missing is an error in /diagnostics"),
    )

    def configure(self) -> None:
        self._pedal: Pedal | None = None
        self._problem = "" if self.param("device") else "no device is named"
        self._retry_s = 0.0
        self._buttons: tuple[bool, ...] = ()
        self._due_s = 0.0
        self._joy = self.create_publisher(Joy, topics.JOY, qos.EVENT)

    def activate(self) -> None:
        if self.param("device"):
            self.create_ticker(200.0, self._poll)

    def deactivate(self) -> None:
        self._close()

    def shutdown(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._pedal is not None:
            self._pedal.close()
            self._pedal = None

    def _poll(self) -> None:
        now = time.monotonic()
        if self._pedal is None:
            if now >= self._retry_s:
                self._retry_s = now + RETRY_S
                self._open()
            return
        try:
            buttons = self._pedal.read()
        except PedalLost as error:
            self._problem = error.strerror or str(error)
            self.complain("pedal", self._problem)
            self._close()
            return
        if buttons != self._buttons or now >= self._due_s:
            self._buttons, self._due_s = buttons, now + 1.0 / self.param("rate_hz")
            message = Joy(buttons=[int(pressed) for pressed in buttons])
            message.header.stamp = self.get_clock().now().to_msg()
            self._joy.publish(message)

    def _open(self) -> None:
        keys = [key for key in self.param("keys") if key]
        try:
            self._pedal = open_pedal(self.param("device"), keys, self.param("grab"))
        except ContractError as error:
            self._problem = str(error)
            self.complain("pedal", self._problem)
            return
        self._problem = ""
        self._buttons = ()
        self.get_logger().info(f"pedal {self._pedal.name} is there")

    def diagnose(self) -> Iterable[Status]:
        if self._problem:
            yield Status("device", ERROR if self.param("required") else OK, self._problem)
        else:
            pressed = [index for index, down in enumerate(self._buttons) if down]
            yield Status(
                "device", OK, f"{self.param('device')}: {len(self._buttons)} buttons", {"down": pressed}
            )


def main() -> None:
    run(PedalNode)


if __name__ == "__main__":
    main()
