"""A run as stages: each leaves a record of what it made from what, and is skipped while that still holds.

    <run>/stages/<name>.json   record of one stage: key, settings, inputs and outputs by hash, seconds, result
    <run>/manifest.json        all of them, in order, with the code's version: the run's lineage

A stage's key is the hash of its settings and of what its inputs hold. It is done when its record has that key
and its outputs exist. One that was killed goes on in what it left if the key is the same, and begins anew,
with its leftovers removed, if it is not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recap_learner.artefacts import Contents, combined, examine
from recap_station.files import write_json

Report = Callable[[float, str], None]
Work = Callable[[Report], dict[str, Any]]
Outputs = Sequence[Path] | Callable[[dict[str, Any]], Sequence[Path]]
MANIFEST, RECORDS, FORMAT = "manifest.json", "stages", 1


class StageError(RuntimeError):
    """A stage cannot be trusted or was stopped. One line that says which, and what to do."""


class Display(Protocol):
    """Shows a run to a person."""

    def begin(self, name: str, title: str) -> Report: ...

    def end(self, name: str, title: str, seconds: float, before: bool) -> None:
        """before: it had been done in an earlier run."""
        ...


class Quiet:
    def begin(self, name: str, title: str) -> Report:
        return lambda fraction, note: None

    def end(self, name: str, title: str, seconds: float, before: bool) -> None:
        pass


class Made:
    """A stage's outputs, there or still being made."""

    def __init__(self, name: str, future: Future[dict[str, Any]]) -> None:
        self.name, self._future = name, future

    @property
    def record(self) -> dict[str, Any]:
        """Waits for the stage. Raises what it raised."""
        return self._future.result()

    @property
    def result(self) -> dict[str, Any]:
        return self.record["result"]


class Stages:
    """Runs stages in one folder. A context manager: at its end it waits for those beside it, and stops them
    where something failed."""

    def __init__(
        self, folder: Path, display: Display | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """about: what every record should say of how it was made, such as the code's version."""
        self.folder, self.about = folder, dict(about or {})
        self.display: Display = display or Quiet()
        self.made: dict[str, Made] = {}
        self._beside = ThreadPoolExecutor(1, "beside")
        self._pending: list[Future[dict[str, Any]]] = []
        self._stopping, self._lock = threading.Event(), threading.Lock()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._stopping.set()
        self._beside.shutdown(cancel_futures=error is not None)
        failed = [f.exception() for f in self._pending if not f.cancelled() and f.exception()]
        first = next((e for e in failed if not isinstance(e, _Stopped)), None)
        if first is not None and (error is None or isinstance(error, _Stopped)):
            raise first from None

    def given(self, name: str, paths: Sequence[Path]) -> Made:
        """What somebody else made, as an input of stages. Raises FileNotFoundError."""
        outputs = {}
        for path in paths:
            contents = examine(path)
            if contents is None:
                raise FileNotFoundError(f"{path}: wanted {name}, found nothing")
            outputs[self._name(path)] = contents.to_dict()
        future: Future[dict[str, Any]] = Future()
        future.set_result({"name": name, "outputs": outputs, "result": {}})
        return Made(name, future)

    def stage(
        self,
        name: str,
        title: str,
        work: Work,
        *,
        outputs: Outputs,
        settings: Any = None,
        inputs: Sequence[Made | Path] = (),
        leftovers: Sequence[Path] = (),
        beside: bool = False,
        alone: bool = False,
    ) -> Made:
        """Do `work`, or find it done → what it made.

        outputs: paths that exist afterwards, or what gives them from the result. inputs: stages, whose
        outputs count, and paths, which need not exist. leftovers: paths, with * in the last part, that are
        removed before it begins with other settings than those that left them.
        beside: do it beside the stages that follow, one such at a time; whoever needs it waits. alone: wait
        for those beside first, as for work that must keep time.

        Raises what `work` raises, and StageError where an input changed meanwhile.
        """
        if name in self.made:
            raise ValueError(f"stage {name!r} stands twice in this run")
        if alone:
            self.wait()

        def run() -> dict[str, Any]:
            return self._run(name, title, work, outputs, settings, inputs, leftovers)

        if beside:
            future = self._beside.submit(run)
            self._pending.append(future)
        else:
            future = Future()
            future.set_result(run())
        self.made[name] = Made(name, future)
        return self.made[name]

    def digest(self, made: Made) -> str:
        """Hash of what a stage's outputs hold now."""
        [parts] = self._inputs([made]).values()
        return combined(parts)

    def wait(self) -> None:
        """For everything beside. Raises what it raised."""
        for future in self._pending:
            future.result()

    def _run(
        self, name: str, title: str, work: Work, outputs: Outputs, settings: Any,
        inputs: Sequence[Made | Path], leftovers: Sequence[Path],
    ) -> dict[str, Any]:  # fmt: skip
        found = self._inputs(inputs)
        plain = _plain(settings)
        sources = {source: combined(parts) for source, parts in found.items()}
        text = json.dumps([name, plain, sources], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        path, marker = self._path(name), self._path(f".begun/{name}")
        record = _read(path)
        if record.get("key") == key and all((self.folder / out).exists() for out in record["outputs"]):
            record["outputs"] = self._examined(record["outputs"], record["outputs"])
            self.display.end(name, title, record["seconds"], True)
            self._settle(record)
            return record
        if (_read(marker) or record).get("key", key) != key:
            for leftover in leftovers:
                _remove(leftover)
        write_json(marker, {"key": key})
        path.unlink(missing_ok=True)
        began, clock = datetime.now(UTC), time.monotonic()
        report = self.display.begin(name, title)

        def watched(fraction: float, note: str) -> None:
            if self._stopping.is_set() or any(f.done() and f.exception() for f in self._pending):
                raise _Stopped(f"{title}: stopped, since another stage failed")
            report(fraction, note)

        result = work(watched)
        self._unchanged(title, found)
        made = outputs(result) if callable(outputs) else outputs
        record = {
            "name": name,
            "title": title,
            "key": key,
            "settings": plain,
            "inputs": sources,
            "outputs": self._examined(map(self._name, made), {}),
            "result": _plain(result),
            "began": began.isoformat(timespec="seconds"),
            "seconds": time.monotonic() - clock,
            **self.about,
        }
        if missing := [out for out, contents in record["outputs"].items() if contents is None]:
            raise StageError(f"{title}: wanted {missing[0]} afterwards, found nothing")
        write_json(path, record)
        marker.unlink(missing_ok=True)
        self.display.end(name, title, record["seconds"], False)
        self._settle(record)
        return record

    def _inputs(self, inputs: Sequence[Made | Path]) -> dict[str, dict[str, Contents | None]]:
        """Input → path → what is there."""
        found: dict[str, dict[str, Contents | None]] = {}
        for one in inputs:
            if isinstance(one, Path):
                found[self._name(one)] = {self._name(one): examine(one)}
                continue
            outputs = one.record["outputs"]
            found[one.name] = {
                out: examine(self.folder / out, Contents.from_dict(about)) for out, about in outputs.items()
            }
        return found

    def _unchanged(self, title: str, found: Mapping[str, Mapping[str, Contents | None]]) -> None:
        """Raises StageError where an input is not what it was when the stage began."""
        for parts in found.values():
            for out, before in parts.items():
                now = examine(self.folder / out, before)
                if (now.sha256 if now else "") != (before.sha256 if before else ""):
                    what = "is gone" if now is None else "changed"
                    raise StageError(
                        f"{title}: {self.folder / out} {what} while it ran, so that what it made is of "
                        "neither state; the same command does this stage again with what is there now"
                    )

    def _examined(self, names: Iterable[str], known: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name in names:
            contents = examine(self.folder / name, Contents.from_dict(known.get(name) or {}))
            found[name] = contents.to_dict() if contents else None
        return found

    def _settle(self, record: dict[str, Any]) -> None:
        """Put a record into the manifest."""
        with self._lock:
            path = self.folder / MANIFEST
            manifest = _read(path) or {"format": FORMAT, "stages": {}}
            if manifest["stages"].get(record["name"]) != record:
                manifest["stages"][record["name"]] = record
                write_json(path, manifest)

    def _path(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"

    def _name(self, path: Path) -> str:
        """As records name it: within the run where it is there, so that a run can be moved."""
        path, root = path.absolute(), self.folder.absolute()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)


class _Stopped(Exception):
    """Stopped because of another stage's failure."""


def _read(path: Path) -> dict[str, Any]:
    """A record; nothing where there is none, or one that a full disk cut short."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _remove(path: Path) -> None:
    for found in path.parent.glob(path.name):
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink()


def _plain(data: Any) -> Any:
    """As JSON has it: dataclasses as mappings, paths as text."""
    if is_dataclass(data) and not isinstance(data, type):
        return {type(data).__name__: _plain(asdict(data))}
    if isinstance(data, Mapping):
        return {str(k): _plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(v) for v in data]
    if isinstance(data, np.generic):
        return data.item()
    return data if isinstance(data, (str, int, float, bool, type(None))) else str(data)
