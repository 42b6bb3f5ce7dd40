"""Colours and type of every figure, on light and on dark ground.

Colours are Okabe and Ito's, told apart with every common colour blindness; what a colour says is said a
second time by position, pattern or text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, MUTED, GRID, GREY = "#1f2933", "#5b6770", "#e3e7ea", "#9aa4ac"
BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE = (
    *("#0072B2", "#56B4E9", "#009E73"),
    *("#E69F00", "#D55E00", "#CC79A7"),
)
PAPER = "#fefefe"  # the ground, for halos and gaps
ON_TINT = "#1f2934"  # text on a light tint, dark on either ground
HALF, WIDE = 5.4, 11.2  # widths in inches, at 96 pixels an inch

# What changes with the reader's ground: colour → (name, the colour on dark).
_DARK = {
    INK: ("ink", "#e6eaed"),
    MUTED: ("muted", "#a5b0b8"),
    GRID: ("line", "#313a42"),
    PAPER: ("paper", "#1a1f24"),
    BLUE: ("blue", "#4b9fd8"),
}
VARIABLES = ";".join(f"--{name}:{light}" for light, (name, _) in _DARK.items())
DARK_VARIABLES = ";".join(f"--{name}:{dark}" for name, dark in _DARK.values())

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recap",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
_SYSTEM_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_THEME = f"<style>svg{{{VARIABLES}}}@media(prefers-color-scheme:dark){{svg{{{DARK_VARIABLES}}}}}</style>"


def method_color(method: str) -> str:
    """What marks a way to draw a policy."""
    return {"sft": GREY, "recap": BLUE}.get(method, SKY)


def themed(text: str) -> str:
    """CSS with the colours that depend on the ground as variables."""
    for light, (name, _) in _DARK.items():
        text = re.sub(light, f"var(--{name})", text, flags=re.IGNORECASE)
    return text


def as_svg(draw: Callable[..., Figure]) -> Callable[..., str]:
    """Draw in the report's style and give the SVG as text, in the reader's system font and on his ground."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> str:
        with matplotlib.rc_context(_STYLE):
            file = io.StringIO()
            draw(*args, **options).savefig(file, format="svg", metadata={"Date": None}, transparent=True)
        svg = file.getvalue()
        svg = themed(re.sub(r"'DejaVu Sans'", _SYSTEM_FONTS, svg[svg.index("<svg") :]))
        head = svg.index(">") + 1
        return svg[:head] + _THEME + svg[head:]

    return drawn
