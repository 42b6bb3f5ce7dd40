"""What every node of the project is built on: lifecycle, parameters, steady ticks, diagnostics, a clean end.

A node names itself, lists its parameters, and fills in hooks::

    class Blinker(RecapNode):
        NAME = "blinker"
        PARAMETERS = (Param("rate_hz", 50.0, "how often to blink", "Hz", 1.0, 200.0),)

        def configure(self) -> None:              # self.station and self.task are loaded; raise to refuse
            self.lamp = self.create_publisher(Bool, "lamp", qos.COMMAND)

        def activate(self) -> None:               # tickers made here are destroyed on deactivation
            self.create_ticker(self.param("rate_hz"), self.tick)

        def shutdown(self) -> None: ...           # called once on the way out

    def main() -> None:
        run(Blinker)

Hooks may raise: the traceback is logged and the transition returns ERROR. Callbacks of subscriptions,
timers and services may raise too: the error is logged at most once a second, counted in /diagnostics,
and a service answers `success: false` with the error as its message. No callback ends a node.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from recap_station.contract import ContractError, Station, Task, load_station, load_task
from recap_station.nodes import qos
from recap_station.nodes.params import COMMON, Param, declare
from recap_station.nodes.process import claim_realtime, one_line, run
from recap_station.timing import TickStatistics

STEADY = Clock(clock_type=ClockType.STEADY_TIME)
TICKING_HZ, TICKING_PRIORITY = 50.0, 10
REALTIME_TEXT = "round-robin real-time priority, where the system grants one; 0: none; -1: if it ticks fast"
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass(frozen=True)
class Status:
    """One line of /diagnostics: `<node>: <name>` with a level, a message and values to plot."""

    name: str
    level: bytes
    message: str
    values: dict[str, Any] = field(default_factory=dict)


class Ticker:
    """A drift-free steady tick: rcl keeps the schedule, this keeps the statistics.

    The schedule is start + k·period on the steady clock whatever the callback takes; a tick that could
    not run before the next one was due is counted as missed and not run late.
    """

    def __init__(self, node: RecapNode, rate_hz: float, callback: Callable[[], None], name: str):
        self.name = name
        self.statistics = TickStatistics(1.0 / rate_hz)
        self._callback = callback
        self._timer = node.create_timer(1.0 / rate_hz, self._fire, clock=STEADY)

    def _fire(self) -> None:
        now = time.monotonic_ns()
        self.statistics.tick(now, now + self._timer.time_until_next_call())
        try:
            self._callback()
        finally:
            self.statistics.done(time.monotonic_ns())

    def cancel(self) -> None:
        self._timer.cancel()
        self._timer.destroy()


class RecapNode(LifecycleNode):
    """Base of all nodes. See the module's text for what a subclass fills in."""

    NAME: ClassVar[str] = "node"
    PARAMETERS: ClassVar[tuple[Param, ...]] = ()
    REALTIME_PRIORITY: ClassVar[int] = -1  # -1: TICKING_PRIORITY for nodes that tick at TICKING_HZ or faster

    station: Station
    task: Task

    def __init__(self, **node_options: Any):
        self._errors: dict[str, int] = {}
        self._last_error = ""
        self._last_logged: dict[str, float] = {}
        self._tickers: list[Ticker] = []
        self.active = False
        self._configured = False
        self.start_error: Exception | None = None
        super().__init__(self.NAME, **node_options)
        realtime = Param("realtime_priority", self.REALTIME_PRIORITY, REALTIME_TEXT, "", -1, 98)
        self.realtime = 0
        for row in (*COMMON, realtime, *self.PARAMETERS):
            declare(self, row)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.EVENT)
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)
        self._permanent = {id(one) for one, _ in self._endpoints()}

    # --- what a subclass fills in ---------------------------------------------------------------

    def configure(self) -> None:
        """Create publishers, subscriptions and services. Raise to refuse."""

    def activate(self) -> None:
        """Start ticking."""

    def deactivate(self) -> None:
        """Stop; tickers are cancelled by the base class."""

    def cleanup(self) -> None:
        """Release what configure() took; as shutdown() unless a node says otherwise. Publishers,
        subscriptions, services, timers go by themselves."""
        self.shutdown()

    def shutdown(self) -> None:
        """Called once on the way out of a node that had been configured; the ROS context is still valid."""

    def diagnose(self) -> Iterable[Status]:
        """More lines for /diagnostics, asked for once a second while the node is configured."""
        return ()

    # --- helpers ----------------------------------------------------------------------------------

    def param(self, name: str) -> Any:
        """Value of a declared parameter."""
        return self.get_parameter(name).value

    def create_ticker(self, rate_hz: float, callback: Callable[[], None], name: str = "loop") -> Ticker:
        """Call `callback` at a steady rate until deactivation; its timing is in /diagnostics."""
        ticker = Ticker(self, rate_hz, callback, name)
        self._tickers.append(ticker)
        return ticker

    def now_ns(self) -> int:
        """ROS time, for stamps in messages."""
        return self.get_clock().now().nanoseconds

    def complain(self, key: str, text: str) -> None:
        """Log an error at most once a second per key, and count it for /diagnostics."""
        self._errors[key] = self._errors.get(key, 0) + 1
        self._last_error = text.strip().splitlines()[-1]
        now = time.monotonic()
        if now - self._last_logged.get(key, -1e9) >= 1.0:
            self._last_logged[key] = now
            self.get_logger().error(f"{key}: {text}")

    # --- callbacks that cannot end the node ---------------------------------------------------------

    def create_subscription(self, msg_type: Any, topic: str, callback: Any, *args: Any, **kwargs: Any) -> Any:
        return super().create_subscription(msg_type, topic, self._guard(topic, callback), *args, **kwargs)

    def create_timer(self, period: float, callback: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        name = getattr(callback, "__qualname__", "timer")
        return super().create_timer(period, self._guard(name, callback), *args, **kwargs)

    def create_service(self, srv_type: Any, name: str, callback: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().create_service(srv_type, name, self._guard(name, callback), *args, **kwargs)

    def _guard(self, key: str, callback: Any) -> Any:
        def failed(args: tuple[Any, ...]) -> Any:
            error = sys.exc_info()[1]
            line = one_line(error)
            self.complain(key, line if isinstance(error, ContractError) else traceback.format_exc())
            if len(args) == 2 and hasattr(args[1], "success"):  # a service: answer instead of leaving it open
                args[1].success = False
                if hasattr(args[1], "message"):
                    args[1].message = line
                return args[1]
            return None

        if inspect.iscoroutinefunction(callback):

            @functools.wraps(callback)
            async def guarded_async(*args: Any) -> Any:
                try:
                    return await callback(*args)
                except Exception:
                    return failed(args)

            return guarded_async

        @functools.wraps(callback)
        def guarded(*args: Any) -> Any:
            try:
                return callback(*args)
            except Exception:
                return failed(args)

        return guarded

    # --- lifecycle --------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition("configure", self._configure)
        self._configured = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition("activate", self.activate)
        self.active = result == TransitionCallbackReturn.SUCCESS
        if self.active and not self.param("autostart"):  # else run() does, once start-up is over
            self.claim_priority()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_tickers()
        return self._transition("deactivate", self.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("cleanup", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_tickers()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, with nothing left over: whoever manages the node may try again."""
        self._stop_tickers()
        try:
            self._release()
        except Exception:
            self.complain("cleanup", traceback.format_exc())
        return TransitionCallbackReturn.SUCCESS

    def start(self) -> None:
        """Configure and activate. Raises what the hook raised."""
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                raise self.start_error or RuntimeError(f"{self.NAME} did not start")

    def claim_priority(self) -> None:
        """Take the real-time priority asked for; the loop's line in /diagnostics says what was granted."""
        wanted = self.param("realtime_priority")
        if wanted < 0:
            fast = any(1.0 / ticker.statistics.period_s >= TICKING_HZ for ticker in self._tickers)
            wanted = TICKING_PRIORITY if fast else 0
        self.realtime = claim_realtime(wanted)

    def end(self) -> None:
        """Stop ticking and call shutdown() where configure() had succeeded."""
        self._stop_tickers()
        if self._configured:
            self._configured = False
            self.shutdown()

    def _transition(self, name: str, hook: Callable[[], Any]) -> TransitionCallbackReturn:
        try:
            hook()
        except Exception as error:
            self.start_error = error
            if not isinstance(error, ContractError):
                self.get_logger().error(f"{name} failed\n{traceback.format_exc()}")
            elif not self.param("autostart"):  # else run() prints the line
                self.get_logger().error(f"{name} failed: {one_line(error)}")
            self._publish_diagnostics()  # a manager passes the reason on
            return TransitionCallbackReturn.ERROR
        self.start_error = None
        return TransitionCallbackReturn.SUCCESS

    def _release(self) -> None:
        """Undo configure(), which would make a second one of everything."""
        configured, self._configured = self._configured, False
        try:
            if configured:
                self.cleanup()
        finally:
            for endpoint, destroy in self._endpoints():
                if id(endpoint) not in self._permanent:
                    destroy(endpoint)

    def _configure(self) -> None:
        self.station = load_station(self.param("station"))
        self.task = load_task(self.param("task"))
        self.configure()

    def _endpoints(self) -> list[tuple[Any, Callable[[Any], Any]]]:
        """Everything of this node that ROS knows, with how to destroy it."""
        kinds: list[tuple[Iterable[Any], Callable[[Any], Any]]] = [
            (self.publishers, self.destroy_publisher),
            (self.subscriptions, self.destroy_subscription),
            (self.services, self.destroy_service),
            (self.clients, self.destroy_client),
            (self.timers, self.destroy_timer),
        ]
        return [(one, destroy) for kind, destroy in kinds for one in list(kind)]

    def _stop_tickers(self) -> None:
        self.active = False
        for ticker in self._tickers:
            ticker.cancel()
        self._tickers.clear()

    # --- diagnostics ------------------------------------------------------------------------------

    def _publish_diagnostics(self) -> None:
        lines = []
        for ticker in self._tickers:
            timing = ticker.statistics.summary()
            late = timing["period_p99_ms"] > 1.5e3 * ticker.statistics.period_s
            text = f"{timing['rate_hz']:.2f} Hz, period p99 {timing['period_p99_ms']:.2f} ms"
            if timing["missed"]:
                text += f", {timing['missed']} ticks missed"
            timing["realtime_priority"] = self.realtime
            lines.append(Status(ticker.name, WARN if late else OK, text, timing))
        errors = sum(self._errors.values())
        if errors:
            text = f"{errors} errors, last: {self._last_error}"
            lines.append(Status("callbacks", WARN, text, dict(self._errors)))
        if self._configured:
            try:
                lines += self.diagnose()
            except Exception:
                self.complain("diagnose", traceback.format_exc())
        if self.start_error is not None:
            lines.append(Status("state", ERROR, one_line(self.start_error)))
        elif not (lines and self.active):
            state = "active" if self.active else "not active" if self._configured else "not configured"
            lines.append(Status("state", OK, state))
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        prefix = self.get_fully_qualified_name().lstrip("/")
        for line in lines:
            values = [KeyValue(key=key, value=_short(value)) for key, value in line.values.items()]
            message.status.append(
                DiagnosticStatus(
                    level=line.level, name=f"{prefix}: {line.name}", message=line.message,
                    hardware_id=prefix, values=values,
                )
            )  # fmt: skip
        self._diagnostics.publish(message)


def to_time(stamp_ns: int) -> Time:
    """int ns → builtin_interfaces/Time."""
    return Time(sec=int(stamp_ns // 1_000_000_000), nanosec=int(stamp_ns % 1_000_000_000))


def to_ns(stamp: Time) -> int:
    """builtin_interfaces/Time → int ns."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def message_type(kind: str) -> Any:
    """Class of a type such as "sensor_msgs/msg/JointState". Raises ContractError where there is none."""
    package, _, name = kind.rpartition("/")
    try:
        return getattr(importlib.import_module(package.replace("/", ".")), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ContractError(f"no message type {kind!r}: {error}") from error


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


__all__ = [
    "COMMON", "ERROR", "OK", "WARN", "Param", "RecapNode", "Status", "Ticker",
    "claim_realtime", "message_type", "run", "to_ns", "to_time",
]  # fmt: skip
