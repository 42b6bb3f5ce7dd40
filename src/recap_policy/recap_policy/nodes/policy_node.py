"""The policy in the graph: `policy/joint_command` at 50 Hz while the policy is to command and has a chunk.

On a hand-back and at the start of an episode the chunk is dropped, and nothing is published until a chunk
inferred from an observation after that moment is there; the arbiter holds meanwhile. It also holds once the
last chunk has run out because the next is late, missing or not finite; /diagnostics says which.

The chunks' clock counts the ticks at which a command went out, and stands still while the robot does: a chunk
that follows another goes on at the row that is due, one that ends a hold begins with its first. So nothing
that comes late makes the robot jump; what comes very late is not carried out at all.
"""

from __future__ import annotations

import array
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from recap_interfaces.msg import ActionChunk, ControlMode, Episode, ValueEstimate
from recap_interfaces.srv import LoadPolicy
from sensor_msgs.msg import CompressedImage, JointState

from recap_policy.chunks import EXECUTE_STEPS, LEAD_STEPS, ChunkBuffer
from recap_policy.description import check
from recap_policy.device import CHOICES, RuntimeConfig
from recap_policy.inference import Failed, InferenceProcess, Inferred, Loaded, WarmUp
from recap_policy.interface import LAYOUT, RTC, Sampling, is_remote
from recap_policy.minder import Died, Event, Minder, Opened, Refused
from recap_policy.observation import Observation, Observer
from recap_station import topics
from recap_station.contract import ContractError
from recap_station.nodes import qos
from recap_station.nodes.base import OK, WARN, Param, RecapNode, Status, run, to_ns, to_time

UNDER_WAY_S = 0.5  # what was received so long after a flush was seen after it, whatever its stamp says
ASK_AGAIN_AFTER_S = 0.1  # after an inference that failed


def _choices(name: str) -> str:
    return ", ".join(CHOICES[name])


@dataclass(frozen=True)
class _Asked:
    """An inference under way: what its observation was."""

    ticket: int
    tick: int
    counted: int
    stamp_ns: int
    sent_s: float


class PolicyNode(RecapNode):
    NAME = "policy"
    PARAMETERS = (
        Param("checkpoint", "", "folder of the policy, or ws://host:port; empty: wait for load_policy"),
        Param("layout", LAYOUT, "names a policy server is spoken to in: of config/layouts, or a path"),
        Param("value_checkpoint", "", "folder of the value function; empty: no value is published"),
        Param(
            "prompt",
            "",
            "what the policy is told; empty: the episode's, else the task's prompt",
            read_only=False,
        ),
        Param(
            "beta", 1.0, "guidance towards the positive indicator; 1: conditioned only", "", 0.0, 10.0, False
        ),
        Param("execute_steps", EXECUTE_STEPS, "steps of a chunk before the next is due", "steps", 1, 50),
        Param("lead_steps", LEAD_STEPS, "how far ahead of that it is asked for", "steps", 0, 49),
        Param("denoising_steps", 5, "Euler steps of a sample", "steps", 1, 100, False),
        Param("rtc", "auto", f"how a chunk goes on from the last: {', '.join(RTC)}"),
        Param("subtask_every", 1, "chunks that one predicted sub-task serves", "chunks", 1, 1000, False),
        Param("metadata", "", "of the prompt, as the policy was trained with; empty: none", read_only=False),
        Param("observation_timeout_s", 0.5, "older images and joint states are not used", "s", 0.05, 10.0),
        Param("inference_threads", 1, "of torch, in the inference process", "", 1, 64),
        Param("inference_nice", 5, "added to the inference process's niceness", "", 0, 19),
        Param("device", "auto", f"inference runs on: {_choices('device')}; auto: a GPU where there is one"),
        Param("dtype", "auto", f"of the weights: {_choices('dtype')}; auto: bfloat16 on a GPU, else float32"),
        Param("compile", "off", f"mode of torch.compile: {_choices('compile')}"),
        Param("cuda_graphs", "auto", f"of the denoising: {_choices('cuda_graphs')}; auto: on a GPU"),
        Param("latest_chunk_s", 1.0, "a chunk this long after its observation is dropped", "s", 0.02, 10.0),
        Param("inference_timeout_s", 15.0, "a process that infers longer is replaced", "s", 0.1, 600.0),
        Param("always_infer", False, "command at all times and infer without a pause, for benchmarks"),
    )

    def configure(self) -> None:
        self._buffer = ChunkBuffer(self.param("execute_steps"), self.param("lead_steps"))
        self._always = self.param("always_infer")
        self._observer = Observer(self.station, self.param("observation_timeout_s"))
        self._latest_ticks = round(self.param("latest_chunk_s") * self.station.control_rate_hz)
        self._process = InferenceProcess(
            self.param("inference_threads"),
            self.param("inference_nice"),
            RuntimeConfig(*(self.param(name) for name in CHOICES)),
        )
        self._minder = Minder(
            self._process,
            self.station,
            lambda: WarmUp(self._sampling(), self.param("lead_steps"), self._prompt()),
            self.param("checkpoint"),
            self.param("value_checkpoint"),
            self.param("layout"),
            self.param("inference_timeout_s"),
        )
        self._sampling()  # refuses what cannot be meant
        self._failure = ""  # of the last inference
        self._unseen = ""  # why no observation could be sent
        self._waiting_load = ""  # checkpoint to load when the episode is over
        self._between = False  # whether an episode has ended since it was asked for
        self._asked: _Asked | None = None
        self._flushed_ns, self._flushed_s = 0, 0.0
        self._tick = self._counted = 0  # of the chunks' clock, see above; of the ticker
        self._moving = False  # whether the last tick sent a command
        self._ask_s = 0.0
        self._fresh = True  # whether the next observation is the first after a break
        self._latency_ms: deque[float] = deque(maxlen=200)
        self._mode: tuple[int, str] | None = None
        self._commanding = self._always
        self._episode: Episode | None = None

        self._command = JointState(name=list(self.station.joint_names))
        self._command.header.frame_id = "policy"
        self._commands = self.create_publisher(JointState, topics.POLICY_COMMAND, qos.COMMAND)
        self._chunks = self.create_publisher(ActionChunk, topics.POLICY_CHUNK, qos.EVENT)
        self._values = self.create_publisher(ValueEstimate, topics.VALUE, qos.EVENT)
        for camera in self.station.camera_names:
            self.create_subscription(
                CompressedImage, topics.image_topic(camera), self._image_callback(camera), qos.SENSOR
            )
        self.create_subscription(JointState, topics.JOINT_STATES, self._on_state, qos.COMMAND)
        self.create_subscription(ControlMode, topics.CONTROL_MODE, self._on_mode, qos.LATCHED)
        self.create_subscription(Episode, topics.EPISODE, self._on_episode, qos.LATCHED)
        # A group of its own: while it awaits the load, the tick that brings the answer must go on.
        own_group = ReentrantCallbackGroup()
        self.create_service(LoadPolicy, "load_policy", self._on_load_policy, callback_group=own_group)
        self._minder.start()
        if not self._minder.checkpoint:
            self.get_logger().warning("no checkpoint: no commands until load_policy brings one")

    def activate(self) -> None:
        self._ticker = self.create_ticker(self.station.control_rate_hz, self._on_tick)

    def cleanup(self) -> None:
        self._minder.stop()

    def shutdown(self) -> None:
        self._minder.stop()

    # --- what comes in ------------------------------------------------------------------------------

    def _image_callback(self, camera: str) -> Callable[[CompressedImage], None]:
        def keep(message: CompressedImage) -> None:
            self._observer.image(camera, message.data, to_ns(message.header.stamp), time.monotonic())

        return keep

    def _on_state(self, message: JointState) -> None:
        state = self.station.vector(message.name, message.position)
        self._observer.state(state, to_ns(message.header.stamp), time.monotonic())

    def _on_mode(self, message: ControlMode) -> None:
        mode = (message.mode, message.reason)
        if mode == self._mode:
            return  # the arbiter repeats itself twice a second
        handing_back = message.mode == ControlMode.HANDOVER and message.source != "teleop"
        self._mode = mode
        self._decide(handing_back)
        if handing_back:
            self._flush(to_ns(message.header.stamp))

    def _on_episode(self, message: Episode) -> None:
        before, self._episode = self._episode, message
        started = message.state == Episode.RUNNING and (before is None or before.id != message.id)
        handing_back = self._mode is not None and self._mode[0] == ControlMode.HANDOVER
        self._decide(handing_back)
        if started or not self._running:
            self._between = bool(self._waiting_load)
        if started:
            self._flush(to_ns(message.header.stamp))

    async def _on_load_policy(
        self, request: LoadPolicy.Request, response: LoadPolicy.Response
    ) -> LoadPolicy.Response:
        if not request.path:
            raise ContractError("load_policy: path is empty, wanted a checkpoint's folder or ws://host:port")
        if self._running:
            if not is_remote(request.path):
                check(request.path, "policy", self.station)  # now, while somebody waits for the answer
            self._waiting_load, self._between = request.path, False
            response.success, response.checkpoint = True, self._minder.identity
            response.message = f"{request.path} will be loaded when the episode under way is over"
            return response
        future: Future = Future()
        self._minder.load(request.path, future.set_result)
        reply: Loaded | Failed = await future
        response.success = isinstance(reply, Loaded)
        response.checkpoint = self._minder.identity
        response.message = reply.message if isinstance(reply, Failed) else f"loaded {request.path}"
        return response

    # --- every tick ---------------------------------------------------------------------------------

    def _on_tick(self) -> None:
        statistics = self._ticker.statistics
        counted = statistics.ticks + statistics.missed
        if self._moving:
            self._tick += counted - self._counted
        self._counted = counted
        row = self._buffer.pop(self._tick) if self._commanding else None
        self._moving = row is not None
        if row is not None:
            self._command.header.stamp = self.get_clock().now().to_msg()
            self._command.position = row.tolist()
            self._commands.publish(self._command)
        for event in self._minder.step(time.monotonic()):
            self._take(event)
        if self._between and self._process.running:  # the next may run: it waits for the new policy's chunk
            self._minder.load(self._waiting_load)
            self._waiting_load, self._between = "", False
        due = self._always or self._buffer.needs_chunk(self._tick)
        if self._commanding and due and self._minder.ready:
            self._ask()

    def _ask(self) -> None:
        """Send the observation of this moment, if it is whole, recent and made after the last flush."""
        now = time.monotonic()
        if now < self._ask_s:
            return
        seen = self._observer.observe(now)
        self._unseen = seen if isinstance(seen, str) else ""
        if isinstance(seen, str) or not self._seen_since_flush(seen):
            return
        prompt, how, ahead = self._prompt(), self._sampling(), self._buffer.ahead(self._tick)
        try:
            ticket = self._minder.infer(now, seen.jpegs, seen.state, prompt, how, self._fresh, ahead)
        except ContractError as error:
            self._fail(str(error))
            return
        self._fresh = False
        self._asked = _Asked(ticket, self._tick, self._counted, seen.stamp_ns, now)

    def _take(self, event: Event) -> None:
        match event:
            case Inferred():
                self._take_chunk(event)
            case Failed():
                self._asked = None
                self._fail(event.message)
            case Opened(path, loaded):
                self._failure = ""
                self._flush(self._flushed_ns)
                where = f" ({loaded.runtime})" if loaded.runtime else ""
                self.get_logger().info(f"policy {loaded.policy} loaded from {path}{where}")
            case Refused(_, message):
                self.complain("load_policy", message)
            case Died(message):
                self._flush(self._flushed_ns)
                self.complain("inference", f"{message}; starting another")

    def _take_chunk(self, inferred: Inferred) -> None:
        asked = self._asked
        if asked is None or asked.ticket != inferred.ticket:
            return  # of before a flush
        self._asked = None
        late, step_s = self._counted - asked.counted, self.station.step_s
        if late > self._latest_ticks:  # the scene may be another by now
            self._fail(
                f"the chunk came {late * step_s:.2f} s after its observation, "
                f"wanted at most {self._latest_ticks * step_s:.2f} s"
            )
            return
        try:
            self._buffer.push(inferred.chunk, asked.tick)
        except ContractError as error:
            self._fail(str(error))
            return
        self._failure = ""
        self._publish(inferred, asked)

    def _publish(self, reply: Inferred, asked: _Asked) -> None:
        latency_s = time.monotonic() - asked.sent_s
        self._latency_ms.append(1e3 * latency_s)
        chunk = reply.chunk
        message = ActionChunk(joint_names=list(self.station.joint_names), horizon=len(chunk.positions))
        message.header.stamp = to_time(asked.stamp_ns)
        message.step_s = self.station.step_s
        message.positions = array.array("f", chunk.positions.astype(np.float32).tobytes())
        message.subtask, message.indicator = chunk.subtask, chunk.indicator
        message.checkpoint, message.inference_s = reply.policy, latency_s
        self._chunks.publish(message)
        if chunk.value is not None:
            value = ValueEstimate(value=chunk.value, checkpoint=reply.value)
            value.header.stamp = message.header.stamp
            self._values.publish(value)

    # --- inside -------------------------------------------------------------------------------------

    @property
    def _running(self) -> bool:
        return self._episode is not None and self._episode.state == Episode.RUNNING

    def _decide(self, handing_back: bool) -> None:
        """Whether to command. In HOLD too: the arbiter goes on by itself once commands are back."""
        mode = self._mode[0] if self._mode else ControlMode.POLICY
        may = mode in (ControlMode.POLICY, ControlMode.HOLD) or handing_back
        self._commanding = self._always or (self._running and may)
        if not self._commanding:
            self._failure = self._unseen = ""  # of what is over

    def _flush(self, since_ns: int) -> None:
        """Drop the chunk, and one under way; the next is inferred from what was seen after `since_ns`."""
        self._buffer.flush()
        self._asked, self._fresh = None, True
        self._flushed_ns, self._flushed_s = since_ns, time.monotonic()

    def _seen_since_flush(self, seen: Observation) -> bool:
        """By its stamp; or by its receipt, long enough after it: a clock may have been set back."""
        return seen.stamp_ns >= self._flushed_ns or seen.received_s > self._flushed_s + UNDER_WAY_S

    def _prompt(self) -> str:
        episode = self._episode.prompt if self._episode else ""
        return self.param("prompt") or episode or self.task.prompt

    def _sampling(self) -> Sampling:
        return Sampling(
            self.param("beta"),
            self.param("denoising_steps"),
            metadata=self.param("metadata"),
            subtask_every=self.param("subtask_every"),
            rtc=self.param("rtc"),
        )

    def _fail(self, message: str) -> None:
        """An inference gave no chunk: the arbiter holds once the last one has run out."""
        self._failure = message if self._commanding else ""
        self._ask_s = time.monotonic() + ASK_AGAIN_AFTER_S
        self.complain("inference", message)

    def diagnose(self) -> Iterable[Status]:
        latency, minder = np.array(self._latency_ms or [0.0]), self._minder
        values = {
            "checkpoint": minder.checkpoint,
            "identity": minder.identity,
            "latency_p50_ms": float(np.percentile(latency, 50)),
            "latency_max_ms": float(latency.max()),
            "restarts": minder.deaths,
            "commanding": self._commanding,
            "runtime": minder.runtime,
            "warm_up_ms": 1e3 * minder.warm_up_s,
        }
        waited_s = minder.waited_s(time.monotonic())
        if minder.identity and self._failure:
            yield Status("checkpoint", WARN, f"the last inference failed: {self._failure}", values)
        elif minder.identity and waited_s > self._latest_ticks * self.station.step_s:
            yield Status("checkpoint", WARN, f"the chunk asked for {waited_s:.1f} s ago is late", values)
        elif minder.identity and self._commanding and self._unseen:
            yield Status("checkpoint", WARN, f"nothing to infer from: {self._unseen}", values)
        elif minder.identity and not minder.problem:
            yield Status("checkpoint", OK, f"policy {minder.identity}", values)
        elif minder.problem:
            yield Status("checkpoint", WARN, minder.problem, values)
        else:
            text = "loading" if minder.loading else "no checkpoint: waiting for load_policy"
            yield Status("checkpoint", WARN, text, values)


def main() -> None:
    run(PolicyNode)


if __name__ == "__main__":
    main()
