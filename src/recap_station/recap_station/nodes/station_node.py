"""The simulated cell as a node: joint commands in; joint states, camera JPEGs and truth out, in real time."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable

import cv2
import numpy as np
from recap_interfaces.msg import SimTruth
from recap_interfaces.srv import ResetCell
from sensor_msgs.msg import CompressedImage, JointState

from recap_station import topics
from recap_station.contract import ContractError, load_task
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, run, to_time
from recap_station.sim.cells import make_cell

TRUTH_EVERY = 2  # control ticks: 25 Hz, enough for a scripted operator to drive by
RESET_GRACE_S = 1.0  # how long after a reset commands for the pose before it are passed over
FAR_RAD = 0.1
COMPLAINT_S = 2.0
SILENT_S = 1.0  # the arbiter commands 50 times a second, always


class StationNode(RecapNode):
    """Steps the cell once per control tick with the newest `joint_command`; holds it if none comes."""

    NAME = "station"
    PARAMETERS = (
        Param("seed", 0, "start state before the first reset", "", 0, 2**31 - 1),
        Param("jpeg_quality", 90, "quality of the camera images", "%", 10, 100),
    )

    def configure(self) -> None:
        if not self.param("use_sim"):
            raise ContractError(
                "use_sim is false, but this node is the simulated cell; start the robot's driver"
            )
        self.cell = make_cell(self.station, self.task)
        self.cell.reset(self.param("seed"))
        self._command = self.station.home
        self._reset_at = -RESET_GRACE_S
        self._refused, self._refused_at = "", -COMPLAINT_S
        self._commanded_at: float | None = None
        self._ended = False
        for camera in self.station.camera_names:
            self.cell.render(camera)  # the first image costs tens of milliseconds: not in a tick
        self._states = self.create_publisher(
            JointState, topics.JOINT_STATES, qos.for_topic(topics.JOINT_STATES)
        )
        self._truths = self.create_publisher(SimTruth, topics.SIM_TRUTH, qos.for_topic(topics.SIM_TRUTH))
        self._images = {
            camera: self.create_publisher(
                CompressedImage, topics.image_topic(camera), qos.for_topic(topics.image_topic(camera))
            )
            for camera in self.station.camera_names
        }
        self.create_subscription(
            JointState, topics.JOINT_COMMAND, self.on_command, qos.for_topic(topics.JOINT_COMMAND)
        )
        self.create_service(ResetCell, "reset", self.on_reset)

    def activate(self) -> None:
        self._tick = 0
        self.create_ticker(self.station.control_rate_hz, self.tick)

    def cleanup(self) -> None:
        self.cell.close()

    def shutdown(self) -> None:
        self.cell.close()

    def on_command(self, message: JointState) -> None:
        try:
            command = self.station.vector(message.name, message.position)
            if not np.isfinite(command).all():
                bad = self.station.joint_names[int(np.argmin(np.isfinite(command)))]
                raise ContractError(f"position of {bad} is not a finite number")
        except ContractError as error:
            self._refused, self._refused_at = str(error), time.monotonic()
            raise
        self._commanded_at = time.monotonic()
        if time.monotonic() - self._reset_at < RESET_GRACE_S:
            # The sender may still hold the pose from before the reset: never jump back to it.
            arms = ~self.station.is_gripper
            if np.abs(command - self._command)[arms].max() > FAR_RAD:
                return
        self._command = command

    def on_reset(self, request: ResetCell.Request, response: ResetCell.Response) -> ResetCell.Response:
        seed = int(request.seed) if request.seed >= 0 else secrets.randbelow(2**31)
        if request.task and request.task != self.task.name:
            task = load_task(request.task)
            cell = make_cell(self.station, task)
            self.cell.close()
            self.cell, self.task = cell, task
        self.cell.reset(seed)
        self._command = self.station.home
        self._reset_at = time.monotonic()
        self._ended = False
        response.success, response.seed = True, seed
        response.message = f"{self.task.name} reset with seed {seed}"
        return response

    def tick(self) -> None:
        self.cell.step(self._command)
        stamp = to_time(self.now_ns())
        state = JointState()
        state.header.stamp = stamp
        state.name = list(self.station.joint_names)
        state.position = self.cell.state().tolist()
        self._states.publish(state)
        truth = self.cell.truth()
        ended = truth.success or truth.failure
        if self._tick % TRUTH_EVERY == 0 or ended != self._ended:
            message = SimTruth(
                stage=truth.stage, success=truth.success, failure=truth.failure, qpos=truth.qpos.tolist()
            )
            message.header.stamp = stamp
            self._truths.publish(message)
        self._ended = ended
        for index, camera in enumerate(self.station.cameras):
            if self._due(index, camera.rate_hz):
                self._images[camera.name].publish(self._image(camera.name, stamp))
        self._tick += 1

    def _due(self, index: int, rate_hz: float) -> bool:
        """Whether a camera's next image falls in this tick; cameras are spread over a period."""
        per_tick = rate_hz / self.station.control_rate_hz
        offset = index / len(self.station.cameras) + 1e-6
        return math.floor(self._tick * per_tick + offset) != math.floor((self._tick - 1) * per_tick + offset)

    def _image(self, camera: str, stamp: object) -> CompressedImage:
        bgr = cv2.cvtColor(self.cell.render(camera), cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.param("jpeg_quality")])
        message = CompressedImage(format="jpeg")
        message.header.stamp = stamp
        message.header.frame_id = camera
        message.data.frombytes(jpeg.data)
        return message

    def diagnose(self) -> Iterable[Status]:
        now = time.monotonic()
        age_s = None if self._commanded_at is None else now - self._commanded_at
        values = {"age_s": "never" if age_s is None else age_s, "task": self.task.name}
        if now - self._refused_at < COMPLAINT_S:
            yield Status("command", ERROR, f"refused, holding the last one: {self._refused}", values)
        elif age_s is None:
            yield Status("command", WARN, "none yet: standing at home", values)
        elif age_s > SILENT_S:
            yield Status("command", WARN, f"none for {age_s:.1f} s: holding the last one", values)
        else:
            yield Status("command", OK, "accepted", values)


def main() -> None:
    run(StationNode)


if __name__ == "__main__":
    main()
