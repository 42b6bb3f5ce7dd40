"""A snapshot as lines of text, for a screen of any size, with or without colours and box characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from recap.operate.actions import legend
from recap_teleop.modes import Mode
from recap_teleop.snapshot import EpisodeSeen, PolicySeen, RecorderSeen, Snapshot, Stream, advice

# Letters of the mode, 5 rows of pixels; two rows make one line of half blocks.
FONT = {
    "A": (".##.", "#..#", "####", "#..#", "#..#"),
    "C": (".###", "#...", "#...", "#...", ".###"),
    "D": ("###.", "#..#", "#..#", "#..#", "###."),
    "E": ("####", "#...", "###.", "#...", "####"),
    "H": ("#..#", "#..#", "####", "#..#", "#..#"),
    "I": ("#", "#", "#", "#", "#"),
    "L": ("#...", "#...", "#...", "#...", "####"),
    "N": ("#...#", "##..#", "#.#.#", "#..##", "#...#"),
    "O": (".##.", "#..#", "#..#", "#..#", ".##."),
    "P": ("###.", "#..#", "###.", "#...", "#..."),
    "R": ("###.", "#..#", "###.", "#.#.", "#..#"),
    "S": (".###", "#...", ".##.", "...#", "###."),
    "T": ("#####", "..#..", "..#..", "..#..", "..#.."),
    "V": ("#...#", "#...#", ".#.#.", ".#.#.", "..#.."),
    "Y": ("#...#", ".#.#.", "..#..", "..#..", "..#.."),
}
COLOURS = {
    Mode.POLICY.name: "bright_blue",
    Mode.HANDOVER.name: "bright_magenta",
    Mode.TELEOP.name: "bright_green",
    Mode.HOLD.name: "bright_yellow",
    Mode.ESTOP.name: "bright_red",
}
WHO = {"policy": "the policy commands", "teleop": "a person commands", "hold": "nobody commands: it holds"}
OUTCOMES = {"SUCCESS": "green", "FAILURE": "red", "DISCARDED": "yellow"}
NARROW = 72  # columns below which the two halves stand one below the other
LOW = 20  # rows below which the mode is one line


@dataclass(frozen=True)
class Glyphs:
    """Characters that not every terminal has."""

    rule: str = "─"
    live: str = "●"
    silent: str = "○"
    full: str = "█"
    empty: str = "░"
    good: str = "✓"
    bad: str = "✗"
    dot: str = "·"
    cut: str = "…"
    blocks: tuple[str, str, str] = ("▀", "▄", "█")  # upper half, lower half, both; () for one-line letters


ASCII = Glyphs("-", "*", "o", "#", ".", "ok", "!!", "-", ">", ("", "", ""))


def lines(now: Snapshot, width: int, height: int, glyphs: Glyphs = Glyphs()) -> list[Text]:
    """At most `height` lines of at most `width` columns. What does not fit is left out, the least first."""
    head = [_header(now, width), *_mode(now, width, height < LOW, glyphs)]
    foot = [_answer(now, glyphs), *_legend(now, width)]
    room = height - len(head) - len(foot)
    if room < 0:
        return [_cut(line, width, glyphs) for line in [*head, *foot][:height]]
    if width < NARROW:
        parts = [
            _titled("episode", _episode(now.episode, glyphs), width, glyphs),
            _titled("sources", _streams(now.sources, width, glyphs), width, glyphs),
            _titled("recorder, policy", _machine(now.recorder, now.policy), width, glyphs),
            _titled("topics", _streams(now.topics, width, glyphs), width, glyphs),
        ]
    else:
        left = width // 2 - 1
        right = width - left - 2
        parts = [
            _beside(
                _titled("episode", _episode(now.episode, glyphs), left, glyphs),
                _titled("recorder, policy", _machine(now.recorder, now.policy), right, glyphs),
                left,
            ),
            _beside(
                _titled("sources", _streams(now.sources, left, glyphs), left, glyphs),
                _titled("topics", _streams(now.topics, right, glyphs), right, glyphs),
                left,
            ),
        ]
    # Alarms get two lines before the rest is filled, and what is left after it.
    alarms = _alarms(now, glyphs)
    kept = min(len(alarms), 2) + 1
    body: list[Text] = []
    for part in parts:
        if len(body) + len(part) + kept <= room:
            body += part
        elif len(part) > 2 and len(body) + 2 + kept <= room:
            body += part[: room - kept - len(body)]
    if room - len(body) >= 2:
        body += _titled("diagnostics", alarms, width, glyphs)[: room - len(body)]
    body += [Text()] * (room - len(body))
    return [_cut(line, width, glyphs) for line in [*head, *body, *foot]]


def one_line(now: Snapshot) -> str:
    """For a terminal that cannot move its cursor: how things stand, printed anew when that changes."""
    mode, episode = now.mode, now.episode
    words = [_mode_name(now), f"({mode.source}: {mode.reason})" if mode.name else ""]
    if episode.id:
        words.append(f"episode {episode.id} {episode.state} {episode.outcome}".rstrip())
    words.append(", ".join(f"{s.name} {'live' if s.live else 'silent'}" for s in now.sources))
    return " ".join(filter(None, words)) + (f" | {advice(now)}" if advice(now) else "")


# --- parts ------------------------------------------------------------------------------------------


def _header(now: Snapshot, width: int) -> Text:
    where = f"ROS domain {now.domain}, namespace /{now.namespace.strip('/')}"
    errors = sum(alarm.level == "error" for alarm in now.alarms)
    state = f"{errors} error{'s' * (errors != 1)}" if errors else f"{len(now.nodes)} nodes heard"
    text = f" recap operate  {where}"
    return Text(text + state.rjust(max(1, width - cell_len(text) - 1)) + " ", style="reverse")


def _mode_name(now: Snapshot) -> str:
    return now.mode.name if now.mode.live else "SILENT"


def _mode(now: Snapshot, width: int, low: bool, glyphs: Glyphs) -> list[Text]:
    name, mode = _mode_name(now), now.mode
    style = f"bold {COLOURS.get(name, 'bright_red')}"
    if mode.live:
        who = WHO.get(mode.source, f"{mode.source} commands")
        lasted = f"for {'' if mode.begun else 'at least '}{_clock(mode.for_s)}"
        beside = [who, f"because: {mode.reason}", lasted]
    elif mode.name:
        beside = ["nobody commands the robot", f"last heard: {mode.name}, {mode.reason}", ""]
    else:
        beside = ["nobody commands the robot", "no control_mode was heard yet", ""]
    drawn = glyphs.blocks[0] and not low and set(name) <= set(FONT)
    big = _big(name, glyphs) if drawn else []
    wide = max((cell_len(row) for row in big), default=0)
    if big and wide + 30 <= width:
        rows = [
            Text.assemble("  ", (row.ljust(wide), style), "   ", (text, "bold" if index == 0 else ""))
            for index, (row, text) in enumerate(zip(big, beside, strict=True))
        ]
        rows = [Text(), *rows]
    else:
        spaced = f"[ {' '.join(name)} ]"
        rows = [Text.assemble("  ", (spaced, style), "  ", (beside[0], "bold"))]
        rows.append(Text("  " + f"  {glyphs.dot} ".join(filter(None, beside[1:]))))
    told = advice(now)
    urgent = not mode.live or name == Mode.ESTOP.name or (now.person_wanted and not now.teleop_alive)
    rows.append(Text("  " + told, style="bold bright_red" if urgent else "bright_yellow"))
    return rows


def _big(word: str, glyphs: Glyphs) -> list[str]:
    """Three lines of half blocks."""
    upper, lower, both = glyphs.blocks
    halves = {(False, False): " ", (True, False): upper, (False, True): lower, (True, True): both}
    rows = [".".join(FONT[letter][row] for letter in word) for row in range(5)]
    rows.append("." * len(rows[0]))
    return [
        "".join(halves[a == "#", b == "#"] for a, b in zip(rows[i], rows[i + 1], strict=True))
        for i in (0, 2, 4)
    ]


def _episode(episode: EpisodeSeen, glyphs: Glyphs) -> list[Text]:
    if not episode.id and not episode.state:
        return [Text("no episode control was heard", style="bright_yellow")]
    style = OUTCOMES.get(episode.outcome, "bold")
    label = episode.outcome or episode.state
    if episode.relabel_s > 0:
        label += f" (s f d u change it: {episode.relabel_s:.0f} s)"
    elif episode.reason and episode.reason != episode.outcome.lower():
        label += f" ({episode.reason})"
    share = episode.elapsed_s / episode.limit_s if episode.limit_s else 0.0
    filled = round(10 * min(1.0, share))
    bar = glyphs.full * filled + glyphs.empty * (10 - filled)
    seed = f", seed {episode.seed}" if episode.seed >= 0 else ""
    since = "" if episode.whole else ", since joining"
    return [
        Text.assemble((label, style)),
        Text(episode.id or "none yet"),
        Text(f"{episode.task}{seed}{f', {episode.stage}' if episode.stage else ''}"),
        Text(f"{episode.elapsed_s:5.1f} of {episode.limit_s:.0f} s  {bar}"),
        Text(f"corrections {episode.corrections}, {episode.corrected_s:.1f} s{since}"),
    ]


def _machine(recorder: RecorderSeen | None, policy: PolicySeen | None) -> list[Text]:
    if recorder is None:
        rows = [Text("no recorder is heard: nothing is kept", style="bright_yellow")]
    else:
        dropped = f"dropped {recorder.dropped}, waiting {recorder.queued}"
        rows = [Text(recorder.text), Text(dropped, style="bold bright_red" if recorder.dropped else "")]
        if recorder.bag:
            rows.insert(1, Text(recorder.bag))
    if policy is None:
        return [*rows, Text("no policy node is heard", style="bright_yellow")]
    numbers = [f"latency {policy.latency_ms:.0f} ms"] if policy.latency_ms else []
    numbers += [f"value {policy.value:+.2f}"] if policy.value is not None else []
    rows.append(Text(policy.text or "policy"))
    if policy.checkpoint:
        rows.append(Text(policy.checkpoint))
    return [*rows, Text(", ".join(numbers))] if numbers else rows


def _streams(streams: Sequence[Stream], width: int, glyphs: Glyphs) -> list[Text]:
    rows = []
    name_width = max((len(stream.name) for stream in streams), default=0)
    beside = 33 if any(stream.note for stream in streams) else 21  # state, rate, note
    name_width = max(4, min(name_width, width - beside))
    for stream in streams:
        if stream.age_s is None:
            state, style = "never heard", "dim"
        else:
            state, style = f"{_age(stream.age_s):>7}", "green" if stream.live else "dim"
        of = f"/{stream.wanted_hz:.0f}" if stream.wanted_hz else ""
        rate = f"{stream.rate_hz:.0f}{of} Hz" if stream.live else ""
        slow = stream.live and stream.wanted_hz and stream.rate_hz < 0.8 * stream.wanted_hz
        mark = glyphs.live if stream.live else glyphs.silent
        rows.append(
            Text.assemble(
                (f"{mark} {_short(stream.name, name_width, glyphs):<{name_width}}", style),
                "  ",
                state,
                "  ",
                (rate.rjust(8), "bright_yellow" if slow else ""),
                f"  {stream.note}" if stream.note else "",
            )
        )
    return rows


def _alarms(now: Snapshot, glyphs: Glyphs) -> list[Text]:
    rows = []
    for alarm in now.alarms:
        style = "bold bright_red" if alarm.level == "error" else "bright_yellow"
        rows.append(Text.assemble((f"{alarm.level:<5} ", style), f"{alarm.name} {glyphs.dot} {alarm.text}"))
    return rows or [Text("all nodes are well" if now.nodes else "no node was heard yet", style="dim")]


def _answer(now: Snapshot, glyphs: Glyphs) -> Text:
    if not now.answer:
        return Text()
    if now.answer_good is None:
        return Text(f"> {now.answer} {glyphs.cut}")
    mark, style = (glyphs.good, "green") if now.answer_good else (glyphs.bad, "bold bright_red")
    return Text.assemble(("> " + mark + " ", style), now.answer)


def _legend(now: Snapshot, width: int) -> list[Text]:
    rows, row = [], Text()
    for key, text in legend(now):
        piece = Text.assemble((f" {key} ", "reverse"), f" {text}  ")
        if row.cell_len + piece.cell_len > width and row.cell_len:
            rows.append(row)
            row = Text()
        row.append_text(piece)
    return [*rows, row]


# --- small things -----------------------------------------------------------------------------------


def _titled(title: str, rows: Sequence[Text], width: int, glyphs: Glyphs) -> list[Text]:
    rule = glyphs.rule * max(0, width - len(title) - 4)
    return [Text.assemble((glyphs.rule * 2, "dim"), f" {title} ", (rule, "dim")), *rows]


def _beside(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    """Two columns, `width` wide the left one, with two spaces between them."""
    rows = []
    for index in range(max(len(left), len(right))):
        row = left[index].copy() if index < len(left) else Text()
        row.truncate(width, pad=True)
        row.append("  ")
        row.append_text(right[index] if index < len(right) else Text())
        rows.append(row)
    return rows


def _cut(line: Text, width: int, glyphs: Glyphs) -> Text:
    """The line on `width` columns; what was cut off is marked."""
    line = line.copy()
    line.plain = "".join(char if char.isprintable() else " " for char in line.plain)
    line.rstrip()
    if line.cell_len > width:
        line.truncate(width - 1)
        line.append(glyphs.cut)
    return line


def _short(name: str, width: int, glyphs: Glyphs) -> str:
    return name if len(name) <= width else name[: width - 1] + glyphs.cut


def _age(age_s: float) -> str:
    if age_s < 1.0:
        return f"{1e3 * age_s:.0f} ms"
    return f"{age_s:.1f} s" if age_s < 60 else _clock(age_s)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
