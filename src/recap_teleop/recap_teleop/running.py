"""What episode control leaves behind while an attempt runs, so that its successor can take it up.

A latched topic dies with the process that latched it, so this is a small file. It counts for a successor only
while the arbiter that the attempt runs with still lives: after a restart of the whole cell nothing must begin
to move by itself. DDS gives every publisher an id that no other ever has, by which that arbiter is known.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recap_teleop.episode import Episode, Outcome, Phase


@dataclass(frozen=True)
class Running:
    """`arbiter`: id of the publisher of control_mode; `boot`: of the machine's run, whose steady clock
    `episode.started_s` is of."""

    episode: Episode
    task: str
    checkpoint: str
    arbiter: str
    boot: str


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def state_file(folder: str, namespace: str) -> Path:
    """One for every ROS domain and namespace. `folder` "": `$ROS_HOME/recap`, which is ~/.ros/recap."""
    home = Path(os.environ.get("ROS_HOME") or Path.home() / ".ros") / "recap"
    where = Path(folder).expanduser() if folder else home
    name = namespace.strip("/").replace("/", ".")
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    return where / f"episode-{domain}{'-' + name if name else ''}.json"


def save_running(path: Path, running: Running | None) -> None:
    """Write it in one step; None: nothing runs. Raises OSError."""
    if running is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(running)))
    temporary.replace(path)


def load_running(path: Path) -> Running | None:
    """What a predecessor was running; None where there is no such thing, or it is not of this boot."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        episode = data.pop("episode")
        episode |= {"phase": Phase(episode["phase"]), "outcome": Outcome(episode["outcome"])}
        running = Running(Episode(**episode), **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return running if running.boot == boot_id() and running.episode.phase is Phase.RUNNING else None
