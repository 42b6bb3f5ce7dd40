"""Processes that are killed or train together, without the seconds that each takes to import torch.

A program imports what it needs once and forks for whatever it is asked to do: `serve` in the program,
`Program` in the test that asks. A forked process is one of its own: it can be killed, and what it leaves is
what any killed process leaves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """code: of the process that ended first with another than 0, negative for a signal."""

    code: int
    out: str
    err: str


class Program:
    """A program that serves. A context manager: at its end the program ends."""

    def __init__(self, script: Path, folder: Path) -> None:
        """folder: for what is written on standard output and error."""
        self._folder = folder
        # Numeric libraries' threads do not survive a fork.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **threads},
        )  # fmt: skip

    def ask(self, *words: str, ranks: int = 1) -> Ended:
        """Have it done by so many processes, as torchrun starts them where there are several."""
        assert self._process.stdin is not None and self._process.stdout is not None
        files = [str(self._folder / name) for name in ("out", "err")]
        self._process.stdin.write(json.dumps([ranks, files, words]) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code, *(Path(file).read_text() for file in files))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


def serve(work: Callable[[Sequence[str]], None]) -> None:
    """Do what is asked for on standard input, in processes forked for it, until that is closed."""
    for line in sys.stdin:
        ranks, files, words = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for file in files:
            Path(file).write_text("")
        children = {_fork(work, words, rank, ranks, port, files) for rank in range(ranks)}
        first = 0
        while children:
            child, status = os.wait()
            children.discard(child)
            code = os.waitstatus_to_exitcode(status)
            if code and not first:
                first = code
                for other in children:  # they would wait for it
                    os.kill(other, signal.SIGKILL)
        print(first, flush=True)


def _fork(
    work: Callable[[Sequence[str]], None],
    words: list[str],
    rank: int,
    ranks: int,
    port: int,
    files: list[str],
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for descriptor, file in zip((1, 2), files, strict=True):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
        if ranks > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), **address}
        work(words)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
