"""What became of one training seed, kept beside the results, so that seeds of several sittings and machines
add up though their runs are gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recap.study.settings import StudySettings
from recap_learner.evaluation.evaluation import Attempt
from recap_policy.chunks import EXECUTE_STEPS
from recap_policy.sizes import value_config, vla_config
from recap_station.contract import Task
from recap_station.files import write_json
from recap_station.sim.styles import STYLES

FORMAT, VERSION = "recap-study-seed", 1


class RecordError(ValueError):
    """A record cannot be read. One readable line."""


@dataclass(frozen=True)
class Record:
    """settings: identity of what was run; about: command, commit, data and seconds; policies: name →
    attempts, in the order of their start states."""

    seed: int
    settings: str
    about: Mapping[str, Any]
    policies: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)

    def with_policies(self, found: Mapping[str, Sequence[Attempt]]) -> Record:
        """Those that were there before stay, unless there are as many attempts of them or more."""
        kept = dict(self.policies)
        kept |= {name: some for name, some in found.items() if len(some) >= len(kept.get(name, ()))}
        return replace(self, policies=kept)

    def write(self, folder: Path) -> None:
        columns = {
            name: {
                "start_state": [a.seed for a in attempts],
                "success": [int(a.success) for a in attempts],
                "duration_s": [round(a.duration_s, 3) for a in attempts],
                "reason": [a.reason for a in attempts],
            }
            for name, attempts in self.policies.items()
        }
        head = {"format": FORMAT, "version": VERSION, "training_seed": self.seed, "settings": self.settings}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(_file(folder, self.seed), {**head, "about": self.about, "policies": columns})


def identity(how: StudySettings, task: Task) -> str:
    """Of what decides how attempts come out, but their number and the code: settings, the task's contract,
    shapes of the models, styles of the demonstrations, steps of a chunk that are carried out."""
    models = [asdict(vla_config(how.policy.config)), asdict(value_config(how.value.config))]
    styles = [asdict(STYLES[name]) for name in how.styles]
    parts = [asdict(replace(how, attempts=0)), task.to_dict(), EXECUTE_STEPS, *models, *styles]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_records(folder: Path) -> dict[int, Record]:
    """Training seed → its record. Raises RecordError on a file that is none."""
    found = [_read(path) for path in sorted(folder.glob("seed_*.json"))]
    return {record.seed: record for record in found}


def _file(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}.json"


def _read(path: Path) -> Record:
    try:
        data = json.loads(path.read_text())
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {data['format']!r} {data['version']!r}, wanted {FORMAT!r} {VERSION}")
        policies = {name: _attempts(columns) for name, columns in data["policies"].items()}
        return Record(data["training_seed"], data["settings"], data["about"], policies)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not a record of a training seed: {error}") from error


def _attempts(columns: Mapping[str, list[Any]]) -> list[Attempt]:
    rows = zip(*(columns[n] for n in ("start_state", "success", "reason", "duration_s")), strict=True)
    return [Attempt(state, bool(won), reason, seconds, 0, 0.0) for state, won, reason, seconds in rows]
