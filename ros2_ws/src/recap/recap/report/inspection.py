"""The page of `./recap inspect`: what is in a store, and what is wrong with it."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recap.report import page
from recap.report.figures import BLUE, GREY, HALF, ORANGE, PURPLE, SKY, VERMILLION, as_svg, bars
from recap_learner.data.inspection import KINDS, EpisodeReport, StoreReport
from recap_station.files import replace_file

_COLORS = {"success": BLUE, "failure": VERMILLION, "discarded": GREY}
MOST_ROWS = 200


def write_page(report: StoreReport, store: Path, out: Path) -> None:
    """Write the page to `out`."""
    summary = report.summary()
    wrong = sum(summary["findings"].values())
    verdict = f"{page.count(wrong, 'finding')} in {page.count(len(report.episodes), 'episode')}"
    head = f'<h1>Store {escape(str(store))}</h1><p class="verdict">{verdict}</p>{_tiles(report)}'
    sections = [
        ("Findings", "What is wrong", _findings(report)),
        ("Episodes", "What is there", _episodes(report)),
        ("Streams", "Rates, pauses and delays", _streams(report)),
    ]
    html = page.document(f"RECAP: store {store.name}", head, sections)
    replace_file(out, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def _tiles(report: StoreReport) -> str:
    summary = report.summary()
    won = summary["outcomes"].get("success", 0)
    total = max(1, len(report.episodes))
    longest = summary["correction_s"]["median"]
    return page.tiles(
        [
            ("episodes", f"{len(report.episodes):,}", f"{summary['hours']:.2f} h", True),
            ("successes", page.percent(won / total), f"{won} of {len(report.episodes)}", False),
            ("median duration", f"{summary['duration_s']['median']:.1f} s", "", False),
            (
                "corrected",
                page.percent(summary["corrected_share"], 1),
                f"of the ticks; {page.count(summary['corrections'], 'correction')}"
                + (f", median {longest:.1f} s" if longest is not None else ""),
                False,
            ),
        ]
    )


def _findings(report: StoreReport) -> str:
    counts = report.summary()["findings"]
    if not counts:
        return page.remark("Nothing was found that is listed in <code>./recap inspect --help</code>.")
    rows = [(kind, float(n), ORANGE, f"{n}") for kind, n in counts.items()]
    figure = page.picture(
        bars(rows, "findings"), "Findings by kind", "How often each was found.", "Findings by kind"
    )
    shown = report.findings[:MOST_ROWS]
    cells = [[f'<span class="bad">{f.kind}</span>', escape(f.episode), escape(f.text)] for f in shown]
    meaning = page.table(["kind", "what it is"], [[k, escape(KINDS[k])] for k in counts])
    more = len(report.findings) - len(shown)
    rest = page.remark(f"{more} more are in <code>--json</code>.") if more else ""
    table = page.table(["kind", "episode", "found"], cells)
    return page.pair(figure, f"<h3>Kinds</h3>{meaning}") + table + rest


def _episodes(report: StoreReport) -> str:
    if not report.episodes:
        return page.note("The store holds no episode that can be read.")
    parts = [
        page.picture(
            _durations(report.episodes),
            "Durations by outcome",
            "Each bar counts the episodes of one outcome that lasted so long.",
            "Durations",
        )
    ]
    if any(e.corrections for e in report.episodes):
        parts.append(
            page.picture(
                _corrections(report),
                "Lengths of corrections",
                "How long people held on when they took over.",
                "Corrections",
            )
        )
    rows = [
        [
            escape(e.episode), escape(e.outcome), escape(e.source), f"{e.duration_s:.2f} s",
            page.percent(sum(e.corrections) / max(1, e.ticks)), page.percent(e.gap_share, 1),
            " ".join(f"{level:.0f}" for level in e.brightness.values()),
        ]
        for e in report.episodes[:MOST_ROWS]
    ]  # fmt: skip
    head = ["episode", "outcome", "source", "duration", "corrected", "gaps", "brightness"]
    table = page.table(head, rows, frozenset({3, 4, 5}))
    return page.pair(*parts) + page.folded(f"The episodes ({len(rows)} shown)", table)


def _streams(report: StoreReport) -> str:
    names = dict.fromkeys(name for e in report.episodes for name in e.streams)
    if not names:
        return page.note("No bag of this store could be read.")
    rows = []
    for name in names:
        streams = [e.streams[name] for e in report.episodes if name in e.streams]
        rates = [s.rate_hz for s in streams]
        rows.append(
            [
                escape(name), f"{len(streams)}", f"{np.median(rates):.1f} Hz", f"{min(rates):.1f} Hz",
                f"{max(s.longest_gap_s for s in streams):.3f} s",
                f"{1e3 * np.median([s.delay_s for s in streams]):.1f} ms",
            ]
        )  # fmt: skip
    head = ["stream", "episodes", "rate, median", "rate, lowest", "longest pause", "delay, median"]
    figure = page.picture(
        _pauses({n: [e.streams[n].longest_gap_s for e in report.episodes if n in e.streams] for n in names}),
        "Longest pause of each stream in each episode",
        "One dot an episode, at the longest time between two messages of the stream.",
        "Pauses",
        wide=True,
    )
    return page.table(head, rows, frozenset({1, 2, 3, 4, 5})) + figure


@as_svg
def _durations(episodes: tuple[EpisodeReport, ...]) -> Figure:
    fig = Figure((HALF, 3.0), layout="constrained")
    axis = fig.add_subplot()
    edges = np.histogram_bin_edges([e.duration_s for e in episodes], bins=20).tolist()
    groups: dict[str, list[float]] = {}
    for e in episodes:
        groups.setdefault(e.outcome, []).append(e.duration_s)
    axis.hist(
        list(groups.values()), edges, stacked=True, color=[_COLORS.get(n, PURPLE) for n in groups],
        label=[f"{n} ({len(v)})" for n, v in groups.items()], edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    axis.set_xlabel("duration [s]")
    axis.set_ylabel("episodes")
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    fig.legend(loc="outside upper left", ncols=3)
    return fig


@as_svg
def _corrections(report: StoreReport) -> Figure:
    fig = Figure((HALF, 3.0), layout="constrained")
    axis = fig.add_subplot()
    axis.hist([n * report.step_s for e in report.episodes for n in e.corrections], bins=20, color=SKY)
    axis.set_xlabel("length of a correction [s]")
    axis.set_ylabel("corrections")
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return fig


@as_svg
def _pauses(longest: dict[str, list[float]]) -> Figure:
    fig = Figure((2 * HALF, 0.9 + 0.32 * len(longest)), layout="constrained")
    axis = fig.add_subplot()
    rng = np.random.default_rng(0)
    for row, values in enumerate(longest.values()):
        spread = -row + rng.uniform(-0.25, 0.25, len(values))
        axis.scatter(np.maximum(values, 1e-3), spread, 14, color=BLUE, alpha=0.6, linewidths=0)
    axis.set_yticks([-row for row in range(len(longest))], list(longest))
    axis.set_xscale("log")
    axis.set_xlabel("longest pause [s], logarithmic")
    axis.grid(False, axis="y")
    return fig
