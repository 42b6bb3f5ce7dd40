"""Bags of attempts in the simulated cell: the topics that the recorder node writes, on simulated time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

import cv2

from recap_station import topics
from recap_station.cdr import compressed_image, joint_state, serialize
from recap_station.contract import Station, Task
from recap_station.sim.cells import AnyCell
from recap_teleop.episode import episode_id
from recap_teleop.modes import Mode
from recap_teleop.recorder import EpisodeRecorder

JPEG_QUALITY = 90


class SimRecording:
    """Writes one attempt; as a context it closes the bag as discarded if the attempt is broken off."""

    def __init__(
        self,
        folder: Path,
        camera_hz: float,
        source: str,
        checkpoint: str,
        station: Station,
        task: Task,
        cell: AnyCell,
        seed: int,
    ) -> None:
        self.station, self.cell, self.task = station, cell, task
        self.start_ns = time.time_ns()
        self.period = station.control_rate_hz / camera_hz
        self.image_due = 0.0
        self.id = episode_id(self.start_ns, seed)
        self.seed = seed
        self.recorder = EpisodeRecorder(folder, station)
        self.path = self.recorder.start(
            {
                "recap.episode": self.id,
                "recap.task": json.dumps(task.to_dict()),
                "recap.checkpoint": checkpoint,
                "recap.seed": str(seed),
                "recap.source": source,
            }
        )
        self.mode: Mode | None = None

    def tick(self, tick, state, truth, command, policy_command, teleop_command) -> None:
        now = self._stamp(tick)
        names, write = self.station.joint_names, self.recorder.write
        if tick == 0:
            write(topics.EPISODE, now, self._episode(now, 1, 0, "", 0.0))
        if command.mode is not self.mode:
            self.mode = command.mode
            write(
                topics.CONTROL_MODE,
                now,
                serialize(
                    topics.MODE_TYPE,
                    stamp_ns=now,
                    mode=command.mode.value,
                    source=command.source,
                    reason=command.reason,
                ),
            )
        write(topics.JOINT_STATES, now, joint_state(now, names, state))
        if policy_command is not None:
            write(topics.POLICY_COMMAND, now, joint_state(now, names, policy_command, "policy"))
        if teleop_command is not None:
            write(topics.TELEOP_COMMAND, now, joint_state(now, names, teleop_command, "teleop"))
        write(topics.JOINT_COMMAND, now, joint_state(now, names, command.positions, command.source))
        if tick >= self.image_due:
            self.image_due += self.period
            write(
                topics.SIM_TRUTH,
                now,
                serialize(
                    topics.TRUTH_TYPE,
                    stamp_ns=now,
                    stage=truth.stage,
                    success=truth.success,
                    failure=truth.failure,
                    qpos=truth.qpos,
                ),
            )
            for camera in self.station.camera_names:
                rgb = self.cell.render(camera)
                _, jpeg = cv2.imencode(
                    ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                )
                write(topics.image_topic(camera), now, compressed_image(now, jpeg.tobytes(), camera))

    def stop(self, ticks: int, success: bool, reason: str) -> str:
        now = self._stamp(ticks)
        outcome = 1 if success else 2
        elapsed = ticks * self.station.step_s
        self.recorder.write(topics.EPISODE, now, self._episode(now, 2, outcome, reason, elapsed))
        self.recorder.stop("success" if success else "failure", reason)
        return str(self.path)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.recorder.stop("discarded", " ".join(str(error).split()) or type(error).__name__)

    def _stamp(self, tick: int) -> int:
        return self.start_ns + round(tick * self.station.step_s * 1e9)

    def _episode(self, now: int, state: int, outcome: int, reason: str, elapsed_s: float) -> bytes:
        return serialize(
            topics.EPISODE_TYPE,
            stamp_ns=now,
            id=self.id,
            state=state,
            outcome=outcome,
            task=self.task.name,
            prompt=self.task.prompt,
            checkpoint="",
            seed=self.seed,
            reason=reason,
            elapsed_s=elapsed_s,
            time_limit_s=self.task.time_limit_s,
        )
