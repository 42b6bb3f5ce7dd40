"""Carries out what a switch asks for: one service call for each press, answered in the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recap_interfaces.srv import EndEpisode, StartEpisode
from std_srvs.srv import Trigger

from recap_station.nodes.base import OK, WARN, RecapNode, Status
from recap_teleop.keys import ACTIONS, Action

_TYPES = {"end_episode": EndEpisode, "start_episode": StartEpisode}


class Asker:
    """Makes a client for every service that the actions need. `ask` never waits."""

    def __init__(self, node: RecapNode, actions: Iterable[str], asked_by: str):
        self._node, self._asked_by = node, asked_by
        services = {ACTIONS[action].service for action in actions} - {""}
        self._clients = {
            service: node.create_client(_TYPES.get(service, Trigger), service) for service in sorted(services)
        }
        self.asked = 0
        self._last, self._refused = "nothing asked for yet", False

    def ask(self, action: str) -> None:
        self.asked += 1
        wanted = ACTIONS[action]
        client = self._clients[wanted.service]
        if not client.service_is_ready():
            self._refuse(action, f"no service {client.srv_name}: is its node running?")
            return
        future = client.call_async(self._request(client, wanted))
        future.add_done_callback(lambda done: self._answered(action, done))

    def _request(self, client: Any, wanted: Action) -> Any:
        request = client.srv_type.Request()
        if wanted.service == "end_episode":
            request.outcome, request.reason = wanted.outcome, self._asked_by
        elif wanted.service == "start_episode":
            request.seed = -1
        return request

    def _answered(self, action: str, done: Any) -> None:
        if done.exception() is not None:
            self._refuse(action, str(done.exception()))
        elif not done.result().success:
            self._refuse(action, done.result().message)
        else:
            self._last, self._refused = f"{action}: {done.result().message}", False
            self._node.get_logger().info(self._last)

    def _refuse(self, action: str, text: str) -> None:
        self._last, self._refused = f"{action}: {text}", True
        self._node.complain("asked in vain", self._last)

    def status(self) -> Status:
        return Status("asked", WARN if self._refused else OK, self._last, {"asked": self.asked})
