"""Attempts noted one by one, so that whatever makes them can be killed and goes on with those it has."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recap.stages import code_version
from recap_learner.evaluation.evaluation import Attempt, EvaluationError, load_attempts


class Journal:
    """Attempts of one policy or expert under one setting, a line each, on disk as soon as they are made. One
    process at a time. key: of what makes them; the last of several attempts at a start state counts.

    A last line that was cut off by a crash is dropped; anything else that is wrong raises EvaluationError.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key, self.code = path, key, code_version(Path(__file__).parents[4])
        self.attempts: dict[int, Attempt] = {}
        self.notes: list[str] = []

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise EvaluationError(f"{self.path}: another process is at it; wanted one at a time") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, attempt: Attempt) -> None:
        self._append(asdict(attempt))
        self.attempts[attempt.seed] = attempt

    def _append(self, data: dict[str, Any]) -> None:
        self._file.write(json.dumps(data).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        self._file.truncate(whole)
        rows = []
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise EvaluationError(
                    f"{self.path}: line {number} cannot be read; delete it, and its attempt is made again"
                ) from None
        if not rows:
            self._append({"key": self.key, "code": self.code})
            return
        if rows[0].get("key") != self.key:
            raise EvaluationError(f"{self.path}: of another policy or setting; wanted another folder")
        if rows[0].get("code") != self.code:
            self.notes.append(f"some attempts were made by code {rows[0].get('code')}, others by {self.code}")
        self.attempts = {attempt.seed: attempt for attempt in load_attempts(rows[1:])}
