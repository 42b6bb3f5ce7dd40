"""What the learner would do next, for the console: asked of its own forecast, in a process of its own, since
that knows torch and this one does without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recap_teleop.console.archive import ArchiveError

FORECAST_S = 120.0  # on a busy machine


def plan_next(run: Path, bags: Path, steps: Mapping[str, int]) -> dict[str, Any]:
    """See `Archive.plan`. The folder of bags is handed over unless it is the run's own or empty."""
    run, bags = run.absolute(), bags.absolute()
    own = bags.is_relative_to(run) or not any(bags.glob("*/metadata.yaml"))
    more = [] if own else [str(bags)]
    command = [sys.executable, "-m", "recap_learner.forecast", "--run", str(run)]
    for parameter in ("value_steps", "policy_steps"):
        if steps.get(parameter):
            command += [f"--{parameter.replace('_', '-')}", str(steps[parameter])]
    command += ["--bags", *more] if more else []
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=FORECAST_S, check=True)
        return {**json.loads(said.stdout.splitlines()[-1]), "run": str(run), "bags": more}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise ArchiveError(f"forecast of {run.name}: {lines[-1]}") from error
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        raise ArchiveError(f"forecast of {run.name}: {error}") from error
