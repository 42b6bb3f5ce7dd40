"""One job for each of many items: here, in worker processes of this machine, or on the machines of a Ray
cluster. The job is the same in all three, and so is what comes out.

A worker that dies on an item (killed, out of memory, a fault in a library) is replaced and the item given to
another, up to RETRIES times; then the item is Lost and the others go on. Jobs must therefore be such that one
which was cut short can be done again: they put their files in place in one step.
"""

from __future__ import annotations

import importlib
import logging
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

RETRIES = 2
REACH_S = 5.0  # to wait for an address to answer
PACKAGES = ("recap_station", "recap_learner")  # that a job may need; Ray's machines get this one's copies
PRELOAD = ["recap_learner.data.episodes"]  # once, in the process that workers are forked from
INSTALL = ".venv/bin/pip install --no-deps -r requirements-machines.txt"


class MachinesError(RuntimeError):
    """The machines cannot be had. One readable line."""


@dataclass(frozen=True)
class Lost:
    """In place of a result: every worker that had the item died."""

    reason: str


def spread(
    job: Callable[[Any], Any], items: Sequence[Any], workers: int = 1, ray: str = ""
) -> Iterator[tuple[int, Any]]:
    """(number of the item, the job's result or Lost) of every item, as they are done.

    job: can be pickled. ray: address of a cluster (HOST:PORT, ray://HOST:PORT, or auto for that of this
    machine); its size then decides, not `workers`. What the job raises is raised here and ends the work.
    Raises MachinesError where there is no such cluster.
    """
    if ray:
        yield from _on_ray(job, items, ray)
    elif workers > 1 and len(items) > 1:
        yield from _in_processes(job, items, min(workers, len(items)))
    else:
        for number, item in enumerate(items):
            yield number, job(item)


# --- processes of this machine --------------------------------------------------------------------------


def _in_processes(job: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    waiting, tries = deque(range(len(items))), Counter[int]()
    idle: list[tuple[Connection, BaseProcess]] = []
    busy: dict[Connection, tuple[int, BaseProcess]] = {}

    def begin(number: int) -> None:
        if idle:
            ours, process = idle.pop()
        else:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is the end of the connection
        busy[ours] = number, process
        with suppress(OSError):  # it has died meanwhile: found below
            ours.send(items[number])

    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                begin(waiting.popleft())
            for ours in wait([*busy]):
                assert isinstance(ours, Connection)
                number, process = busy.pop(ours)
                try:
                    good, result = ours.recv()
                except (EOFError, OSError):
                    process.join()
                    ours.close()
                    tries[number] += 1
                    if tries[number] > RETRIES:
                        yield number, Lost(_ended(process.exitcode))
                    else:
                        waiting.appendleft(number)
                    continue
                idle.append((ours, process))
                if not good:
                    raise result
                yield number, result
    finally:
        for process in (*(process for _, process in idle), *(process for _, process in busy.values())):
            process.terminate()
            process.join()


def _work(job: Callable[[Any], Any], connection: Connection) -> None:
    """A worker: until its starter closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _leave)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            item = connection.recv()
            try:
                answer = True, job(item)
            except Exception as error:
                answer = False, error
            connection.send(answer)


def _leave(*_: object) -> None:
    raise SystemExit  # so that half-written files are removed


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"


# --- Ray ------------------------------------------------------------------------------------------------


def _on_ray(job: Callable[[Any], Any], items: Sequence[Any], address: str) -> Iterator[tuple[int, Any]]:
    try:
        import ray
    except ImportError:
        raise MachinesError(f"--ray: wanted Ray, which is not installed; {INSTALL}") from None
    _reach(address)
    modules = [str(Path(str(importlib.import_module(name).__file__)).parent) for name in PACKAGES]
    try:
        ray.init(
            address, runtime_env={"py_modules": modules}, log_to_driver=False, logging_level=logging.ERROR
        )
    except Exception as error:  # of many kinds, by what is wrong
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise MachinesError(
            f"--ray {address}: no cluster can be used there: {told}; wanted the same Ray and Python as here, "
            "and its token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN) if it has one"
        ) from error
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        shared = ray.put(job)
        waiting = deque(range(len(items)))
        pending: dict[Any, int] = {}
        ahead = 64 + 2 * int(ray.cluster_resources().get("CPU", 1))  # as many as keep all at work
        while waiting or pending:
            while waiting and len(pending) < ahead:
                number = waiting.popleft()
                pending[task.remote(shared, items[number])] = number
            done, _ = ray.wait([*pending])
            for reference in done:
                number = pending.pop(reference)
                try:
                    yield number, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    yield number, Lost(f"({type(error).__name__} of Ray)")
    finally:
        ray.shutdown()


def _run(job: Callable[[Any], Any], item: Any) -> Any:
    return job(item)


def _reach(address: str) -> None:
    """Raises MachinesError where nobody listens: Ray itself would try for a long time."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host and address in ("auto", "local"):
        return
    if not host or not port.isdecimal():
        raise MachinesError(f"--ray {address}: wanted HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise MachinesError(
            f"--ray {address}: nobody answers there ({error}); is `ray start --head` running?"
        ) from None
