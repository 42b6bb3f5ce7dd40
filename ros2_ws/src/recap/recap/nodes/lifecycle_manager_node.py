"""Brings the cell's nodes up in order, keeps them up, and says which one is missing, and why.

It looks at every node once a second through the lifecycle's services. One that it finds unconfigured or
inactive it configures and activates, be that at the start (`autostart:=false`) or after its process was
killed and started again. With `autostart:=true` the nodes do that themselves, and it only looks. Its own end
leaves the nodes as they are: a robot must not stop because somebody who watched it did.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from std_srvs.srv import Trigger

from recap.bringup import managed_by_default
from recap.lifecycle import LEADS_TO, BringUp, Level, Report, read_nodes
from recap_station.nodes import qos
from recap_station.nodes.base import ERROR, OK, WARN, Param, RecapNode, Status, run

LOOK_S = 1.0
ANSWER_S = 5.0  # a state that is not told within this long: the node is missing
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
LEVELS = {Level.OK: OK, Level.WARN: WARN, Level.ERROR: ERROR}


@dataclass
class _Asked:
    future: Future
    asked_s: float


class LifecycleManagerNode(RecapNode):
    NAME = "lifecycle_manager"
    PARAMETERS = (
        Param("nodes", managed_by_default(), "to manage, in order: name, or name:needs,needs"),
        Param("bring_up", True, "bring the nodes up; false: look only, until the service bring_up is called"),
        Param("patience_s", 10.0, "wait for nodes ahead in the list; then they are missing", "s", 0.5, 600.0),
        Param("retry_s", 5.0, "pause before a node that refused is asked again", "s", 0.1, 600.0),
        Param("transition_timeout_s", 30.0, "longest wait for a transition", "s", 0.5, 600.0),
    )

    def configure(self) -> None:
        nodes = read_nodes(self.param("nodes"))
        up = True if self.param("bring_up") else None
        self.bring = BringUp(nodes, self.param("patience_s"), self.param("retry_s"), time.monotonic(), up)
        self._states = {n.name: self.create_client(GetState, f"{n.name}/get_state") for n in nodes}
        self._changes = {n.name: self.create_client(ChangeState, f"{n.name}/change_state") for n in nodes}
        self._looks: dict[str, _Asked] = {}
        self._look_s = 0.0
        self._change: tuple[str, str, _Asked] | None = None
        self._told: dict[str, str] = {}
        self._reached = False
        self._waiting: list[Future] = []
        prefix = self.get_namespace().strip("/")
        self._lines = {f"{prefix}/{n.name}: state".lstrip("/"): n.name for n in nodes}
        self._summary = self.create_publisher(DiagnosticArray, "managed_nodes", qos.LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.EVENT)
        # A group of its own: while it waits for the nodes, everything else of this node must go on.
        group = ReentrantCallbackGroup()
        self.create_service(Trigger, "bring_up", self._service(True), callback_group=group)
        self.create_service(Trigger, "shut_down", self._service(False), callback_group=group)

    def activate(self) -> None:
        self.create_ticker(10.0, self._tick)

    def _service(self, up: bool) -> Any:
        async def serve(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            self.bring.want(up, time.monotonic())
            settled: Future = Future()
            self._waiting.append(settled)
            await settled
            now = time.monotonic()
            response.success, response.message = self.bring.reached, self.bring.summary(now)[1]
            return response

        return serve

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.level == ERROR and status.name in self._lines:
                self.bring.complained(self._lines[status.name], status.message)

    # --- ten times a second ---------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self._look(now)
        self._finish_change(now)
        if self._change is None and (wanted := self.bring.next(now)) is not None:
            name, transition = wanted
            request = ChangeState.Request()
            request.transition.id = TRANSITIONS[transition]
            asked = _Asked(self._changes[name].call_async(request), now)
            self._change = name, transition, asked
            self._looks.pop(name, None)  # its answer may be of the time before
        self._tell(now)
        if self._waiting and self.bring.settled(now):
            for future in self._waiting:
                future.set_result(None)
            self._waiting.clear()

    def _look(self, now: float) -> None:
        """Take in the states that were told; ask for them again once a second."""
        for name, asked in list(self._looks.items()):
            changing = self._change is not None and self._change[0] == name
            if asked.future.done():
                label = asked.future.result().current_state.label
                if changing:
                    self._compare(label, now)
                else:
                    self.bring.saw(name, label)
            elif now - asked.asked_s > ANSWER_S:
                self._states[name].remove_pending_request(asked.future)
                if not changing:  # else it is busy
                    self.bring.lost(name, now)
            else:
                continue
            del self._looks[name]
        if now < self._look_s:
            return
        self._look_s = now + LOOK_S
        for name, client in self._states.items():
            if name in self._looks:
                continue
            if client.service_is_ready():
                self._looks[name] = _Asked(client.call_async(GetState.Request()), now)
            else:
                self.bring.lost(name, now)

    def _compare(self, label: str, now: float) -> None:
        """A node in transition told its state: soon after a start, DDS may lose the transition's answer."""
        assert self._change is not None
        name, transition, asked = self._change
        there = label == LEADS_TO[transition]
        if asked.future.done() or not (there or now - asked.asked_s > ANSWER_S):
            return
        self._changes[name].remove_pending_request(asked.future)
        self.bring.answered(there, now, "" if there else f"still {label}, and no answer")
        self._change = None

    def _finish_change(self, now: float) -> None:
        if self._change is None:
            return
        name, _, asked = self._change
        limit = self.param("transition_timeout_s")
        if asked.future.done():
            self.bring.answered(bool(asked.future.result().success), now)
        elif now - asked.asked_s > limit:
            self._changes[name].remove_pending_request(asked.future)
            self.bring.answered(False, now, f"no answer within {limit:g} s")
        elif not self._changes[name].service_is_ready():
            self._changes[name].remove_pending_request(asked.future)
            self.bring.answered(False, now, "its process ended")
            self.bring.lost(name, now)
        else:
            return
        self._change = None

    def _tell(self, now: float) -> None:
        """Log and publish what changed."""
        reports = self.bring.report(now)
        kinds = {report.name: report.kind for report in reports}
        if kinds == self._told:
            return
        for report in reports:
            self._log(report, self._told.get(report.name, ""))
        self._told = kinds
        if self.bring.reached and not self._reached:
            self.get_logger().info(self.bring.summary(now)[1])
        self._reached = self.bring.reached
        message = DiagnosticArray(status=[self._line(status) for status in self._all(now)])
        message.header.stamp = self.get_clock().now().to_msg()
        self._summary.publish(message)

    def _log(self, report: Report, before: str) -> None:
        """What went wrong, what was done, and what came right; not who is only waited for."""
        logger, line = self.get_logger(), f"{report.name}: {report.text}"
        if report.kind == before:
            return
        if report.level is Level.ERROR:
            logger.error(line)
        elif report.kind == "missing" and before:
            logger.warning(line)
        elif report.level is Level.OK and before and before != "missing":
            logger.info(line)

    def _line(self, status: Status) -> DiagnosticStatus:
        name = self.get_fully_qualified_name().lstrip("/")
        return DiagnosticStatus(
            level=status.level, name=f"{name}: {status.name}", message=status.message, hardware_id=name
        )

    def _all(self, now: float) -> list[Status]:
        level, text = self.bring.summary(now)
        each = [Status(r.name, LEVELS[r.level], r.text) for r in self.bring.report(now)]
        return [Status("nodes", LEVELS[level], text), *each]

    def diagnose(self) -> Iterable[Status]:
        return self._all(time.monotonic())


def main() -> None:
    run(LifecycleManagerNode)


if __name__ == "__main__":
    main()
