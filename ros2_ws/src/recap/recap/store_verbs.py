"""Bodies of the verbs that look at a store or exchange it: inspect, export, import."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

Report = Callable[[float, str], None]


def inspect(store: Path, html: Path, fail_on: str, as_json: bool, progress: Report) -> int:
    """Look at a store, write the page, print what was found → the exit code."""
    from recap.bringup import UsageError
    from recap.report.inspection import write_page
    from recap_learner.data.inspection import KINDS, inspect_store
    from recap_learner.data.store import Store

    fatal = [kind for kind in fail_on.replace(",", " ").split() if kind]
    unknown = [kind for kind in fatal if kind not in (*KINDS, "any")]
    if unknown:
        raise UsageError(f"--fail-on: wanted any or some of {', '.join(KINDS)}, found {unknown[0]!r}")
    opened = Store(store)
    if not opened.files():  # "none" would pass for a store in which nothing is wrong
        raise FileNotFoundError(f"{store}: holds no episode (./recap convert makes them of bags)")
    report = inspect_store(opened, progress=progress)
    write_page(report, store, html)
    failed = sorted({f.kind for f in report.findings if f.kind in fatal or "any" in fatal})
    summary = report.summary()
    if as_json:
        found = [asdict(finding) for finding in report.findings]
        print(json.dumps({"ok": not failed, **summary, "found": found, "failed": failed, "page": str(html)}))
    else:
        _print(summary)
        for finding in report.findings:
            print(f"{finding.kind:10}  {finding.episode}  {finding.text}")
        print(f"page: {html}")
        if failed:
            print(f"failed on: {', '.join(failed)}")
    return 1 if failed else 0


def export_lerobot(store: Path, out: Path, tag: str, codec: str, progress: Report) -> dict[str, Any]:
    from recap_learner.data.store import Store
    from recap_learner.exchange.lerobot_export import export_lerobot as export

    count = export(Store(store), _local(out, "OUT"), tag, codec, progress)
    return {"dataset": str(out), "exported": count}


def export_rerun(store: Path, out: Path, tag: str, episodes: list[str], progress: Report) -> dict[str, Any]:
    from recap_learner.data.store import Store
    from recap_learner.exchange.rerun_export import export_rerun as export

    files = export(Store(store), _local(out, "OUT"), tag, episodes, progress)
    return {"recordings": [str(file) for file in files]}


def import_lerobot(folder: Path, store: Path, station: str, task: str, progress: Report) -> dict[str, Any]:
    from recap_learner.data.store import Store
    from recap_learner.exchange.lerobot_import import import_lerobot as load
    from recap_station.contract import load_station, load_task

    cell = load_station(station) if station else None
    into = Store(_local(store, "--store"))
    names = load(_local(folder, "DIR"), into, cell, load_task(task) if task else None, progress)
    return {"store": str(store), "episodes": names}


def _local(where: Path, what: str) -> Path:
    """Raises UsageError for an address: data sets of other tools are written and read on this machine."""
    from recap.bringup import UsageError
    from recap_station.storage import RemotePath, path

    found = path(where)
    if isinstance(found, RemotePath):
        raise UsageError(f"{what}: wanted a folder of this machine, found {found}; copy it there or back")
    return found


def _print(summary: dict[str, Any]) -> None:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"

    length, cut = summary["duration_s"], summary["correction_s"]
    print(f"episodes: {summary['episodes']} ({summary['hours']:.2f} h): {listed(summary['outcomes'])}")
    print(f"sources: {listed(summary['sources'])}")
    print(f"durations: {length['shortest']} .. {length['longest']} s, median {length['median']} s")
    lengths = f", {cut['shortest']} .. {cut['longest']} s, median {cut['median']} s" if cut["median"] else ""
    print(
        f"corrections: {summary['corrections']} in {summary['corrected_episodes']} episodes, "
        f"{100 * summary['corrected_share']:.1f} % of the ticks{lengths}"
    )
    if summary["unchecked"]:
        print(f"without checksums: {summary['unchecked']} episodes; damage to their bags can be silent")
    print(f"findings: {listed(summary['findings'])}")
