"""A rerun blueprint for what `./recap export rerun` writes: cameras, labels, joints, who commanded.

    .venv/bin/python ros2_ws/src/recap/config/rerun/blueprint.py recap.rbl
    rerun recap.rbl recordings/*.rrd

Wants rerun-sdk (requirements-exchange.txt).
"""

from __future__ import annotations

import sys

import rerun.blueprint as rrb

from recap_station.contract import load_station


def blueprint(station: str = "aloha") -> rrb.Blueprint:
    cameras = [
        rrb.Spatial2DView(origin=f"camera/{name}", name=name) for name in load_station(station).camera_names
    ]
    values, flags = ["/labels/value", "/labels/advantage"], ["/labels/indicator", "/correction"]
    curves = [
        rrb.TimeSeriesView(origin="/", contents=values, name="value, advantage"),
        rrb.TimeSeriesView(origin="/", contents=flags, name="indicator, correction"),
        rrb.TimeSeriesView(origin="/", contents=["/command", "/state"], name="command, state"),
    ]
    told = rrb.TextLogView(
        origin="/", contents=["/source", "/stage", "/outcome"], name="who commanded, stage"
    )
    rows = rrb.Vertical(rrb.Horizontal(*cameras), *curves, told, row_shares=[3, 2, 1, 2, 2])
    return rrb.Blueprint(rows, collapse_panels=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: blueprint.py FILE.rbl")
    blueprint().save("recap", sys.argv[1])
