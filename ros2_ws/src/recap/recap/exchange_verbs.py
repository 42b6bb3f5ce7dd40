"""`./recap export` and `./recap import`: a store as other tools have it, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recap import store_verbs
from recap.output import Json, bar, tell

_NEEDS = "Needs `.venv/bin/pip install --no-deps -r requirements-exchange.txt`."
_HOW = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": "markdown"}

export_app = typer.Typer(
    help=f"""Write a store as a LeRobot v3.0 data set, or as rerun recordings. {_NEEDS} All take --json.

    Example: `./recap export lerobot episodes dataset`""",
    **_HOW,  # type: ignore[arg-type]
)
import_app = typer.Typer(
    help=f"""Read a LeRobot v3.0 data set into a store. {_NEEDS} All take --json.

    Example: `./recap import lerobot dataset --store episodes`""",
    **_HOW,  # type: ignore[arg-type]
)

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of episodes.")]
Tag = Annotated[str, typer.Option(help="Labels to write; else the newest.")]


@export_app.callback()
def _export() -> None:
    """A verb with formats as sub-commands, however many there are."""


@import_app.callback()
def _import() -> None:
    """As for export."""


@export_app.command("lerobot")
def export_lerobot(
    store: StoreFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the data set.")],
    tag: Tag = "",
    codec: Annotated[str, typer.Option(help="h264 or av1.")] = "h264",
    as_json: Json = False,
) -> None:
    """Write a LeRobot v3.0 data set: states, commands, interventions, outcome, labels, a video a camera.

    Example: `./recap export lerobot episodes dataset --codec av1`
    """
    with bar("Episodes", as_json) as report:
        result = store_verbs.export_lerobot(store, out, tag, codec, report)
    tell(result, as_json)


@export_app.command("rerun")
def export_rerun(
    store: StoreFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the .rrd files.")],
    episodes: Annotated[list[str] | None, typer.Option("--episode", help="Only this; repeatable.")] = None,
    tag: Tag = "",
    as_json: Json = False,
) -> None:
    """Write rerun recordings: images as recorded, joints, commands, who commanded, value and advantage.

    Example: `./recap export rerun episodes recordings --episode 20260101T120000_0001`
    """
    with bar("Episodes", as_json) as report:
        result = store_verbs.export_rerun(store, out, tag, episodes or [], report)
    tell(result, as_json)


@import_app.command("lerobot")
def import_lerobot(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data set.")],
    store: Annotated[Path, typer.Option(help="Folder for the episodes.")] = Path("episodes"),
    station: Annotated[str, typer.Option(help="Of a data set that was not exported from here.")] = "",
    task: Annotated[str, typer.Option(help="Of a data set that was not exported from here.")] = "",
    as_json: Json = False,
) -> None:
    """Read a LeRobot v3.0 data set as demonstrations; one that was exported from here as it was.

    Example: `./recap import lerobot dataset --store episodes --station aloha --task handover_insert`
    """
    with bar("Episodes", as_json) as report:
        result = store_verbs.import_lerobot(folder, store, station, task, report)
    tell(result, as_json)
