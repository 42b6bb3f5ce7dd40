"""`./recap report`: a run as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recap.output import Json, tell


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    as_json: Json = False,
) -> None:
    """Write a run's report.html: one file, with pictures, that asks nothing of any host.

    It shows what the run holds and says what is missing. Evaluations in the run's folder, such as those that
    ./recap eval leaves beside its policies, are in it.

    Example: `./recap report runs/demo`
    """
    from recap.report import write_report

    tell({"report": str(write_report(run))}, as_json)
