"""A node's process: signals, priority, exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, ClassVar, Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from recap_station.contract import ContractError
from recap_station.nodes.discovery import announce_often
from recap_station.parent import end_with_starter


class Runnable(Protocol):
    """What a process asks of its node; `recap_station.nodes.base.RecapNode` is one."""

    NAME: ClassVar[str]
    start_error: Exception | None

    def __init__(self) -> None: ...

    def param(self, name: str) -> Any: ...

    def start(self) -> None: ...

    def claim_priority(self) -> None: ...

    def end(self) -> None: ...

    def destroy_node(self) -> None: ...


def run(node_class: type[Runnable], argv: Sequence[str] | None = None) -> None:
    """Main of a node: spin until SIGINT, SIGTERM or SIGHUP, then shutdown() and exit 0 within a second.

    The end of the bring-up that started the node, even by SIGKILL, is a SIGINT to it. Exits 1 with one
    line on stderr when the node refuses to start (wrong contract, wrong parameter).
    """
    sys.exit(_run(node_class, argv))


def _run(node_class: type[Runnable], argv: Sequence[str] | None) -> int:
    stop = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    # Own handlers instead of rclpy's: those invalidate the context before shutdown() could still speak.
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, on_signal)  # the terminal was closed, the connection to it was lost
    node: Any = None
    executor: Any = None
    code = 0
    try:
        end_with_starter()
        announce_often()
        rclpy.init(
            args=list(argv) if argv is not None else None,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        node = node_class()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.param("autostart") and not stop:
            node.start()
        node.claim_priority()
        gc.collect()
        gc.freeze()  # what start-up made stays: collections during ticks need not look at it again
        while not stop:
            executor.spin_once(timeout_sec=0.1)
    except ContractError as error:
        print(f"recap {node_class.NAME}: {one_line(error)}", file=sys.stderr)
        code = 1
    except Exception as error:
        if node is None or node.start_error is not error:  # else it was logged with its traceback
            traceback.print_exc()
        print(f"recap {node_class.NAME}: {one_line(error)}", file=sys.stderr)
        code = 1
    if node is not None:
        try:
            node.end()
        except Exception:
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if node is not None and code == 0:
        node.destroy_node()
    # Whatever of rclpy is still in a cycle must go before the interpreter: its destructor crashes after that.
    node = executor = None
    gc.unfreeze()
    gc.collect()
    if rclpy.ok():
        rclpy.shutdown()
    return code


def claim_realtime(priority: int) -> int:
    """Give this process's threads a round-robin real-time priority; children start as ordinary processes.

    → the priority granted: 0 where the system grants none (no CAP_SYS_NICE, no rtprio limit).
    """
    if not priority:
        return 0
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    try:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
    except OSError:
        return 0
    return priority


def one_line(error: BaseException | None) -> str:
    """An error's text on one line; its type's name where it has none."""
    return f"{error}".replace("\n", " ") or type(error).__name__
