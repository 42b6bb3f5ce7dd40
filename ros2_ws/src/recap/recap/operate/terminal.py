"""A terminal taken over for a while and given back as it was, whatever ends the program.

Drawing is line by line, only lines that changed: a view of ten frames a second stays usable over SSH. A
terminal that cannot move its cursor (TERM=dumb or none) is written to line after line instead.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import termios
import tty
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.text import Text

ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # another screen, no cursor
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"


class TerminalGone(OSError):
    """Nobody is at the other end any more."""


class Terminal:
    """A context manager over the terminal at `fd`. Ctrl-C and Ctrl-\\ stay signals; Ctrl-Z does nothing,
    as a view that stands still would say what is no longer so."""

    def __init__(self, fd_in: int, fd_out: int, environment: Mapping[str, str]) -> None:
        self._in, self._out = fd_in, fd_out
        self.dumb = environment.get("TERM", "") in ("", "dumb", "unknown")
        self._colours = not environment.get("NO_COLOR")
        self.unicode = speaks_unicode(environment)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown: list[Text] = []
        self._size = (0, 0)

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self._in)
        tty.setcbreak(self._in, termios.TCSANOW)
        attributes = termios.tcgetattr(self._in)
        attributes[6][termios.VSUSP] = b"\x00"
        termios.tcsetattr(self._in, termios.TCSANOW, attributes)
        if not self.dumb:
            self._write(ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One after the other: a terminal that takes no more text still gets its settings back.
        with contextlib.suppress(OSError):
            if not self.dumb:
                self._write(LEAVE)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, self._before)

    @property
    def size(self) -> tuple[int, int]:
        """Columns, rows; 80×24 where the terminal does not say."""
        try:
            columns, rows = os.get_terminal_size(self._out)
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def draw(self, lines: Sequence[Text], anew: bool = False) -> None:
        """Show the lines from the top; `anew` writes also those that did not change."""
        size = self.size
        if anew or size != self._size:
            self._size, self._shown = size, []
            self._write("\x1b[0m\x1b[2J")
        shown = list(lines[: size[1]])
        out = []
        for row, line in enumerate(shown):
            if row >= len(self._shown) or not _same(self._shown[row], line):
                out.append(f"\x1b[{row + 1};1H\x1b[0m{self._ansi(line)}\x1b[0m\x1b[K")
        if len(shown) < len(self._shown):
            out.append(f"\x1b[{len(shown) + 1};1H\x1b[J")
        self._shown = shown
        if out:
            self._write("".join(out))

    def say(self, line: str) -> None:
        """A line of plain text, on a dumb terminal."""
        self._write(line + "\n")

    def typed(self, wait_s: float = 0.0) -> str:
        """What was typed since. Raises TerminalGone when the terminal was closed."""
        if not select.select([self._in], [], [], wait_s)[0]:
            return ""
        try:
            data = os.read(self._in, 1024)
        except OSError as error:
            raise TerminalGone(error.errno, "the terminal is gone") from error
        if not data:
            raise TerminalGone(0, "the terminal is gone")
        return self._decoder.decode(data)

    def _ansi(self, line: Text) -> str:
        file = io.StringIO()
        console = Console(
            file=file, width=max(1, line.cell_len), force_terminal=True, legacy_windows=False,
            color_system="standard", no_color=not self._colours, highlight=False,
        )  # fmt: skip
        console.print(line, end="", soft_wrap=True)
        return file.getvalue()

    def _write(self, text: str) -> None:
        data = text.encode("utf-8" if self.unicode else "ascii", "replace")
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except OSError as error:
                raise TerminalGone(error.errno, "the terminal is gone") from error


def _same(one: Text, other: Text) -> bool:
    """Text's own equality leaves the style of the whole line out."""
    return one == other and one.style == other.style


def speaks_unicode(environment: Mapping[str, str]) -> bool:
    """Whether the locale promises UTF-8: the first of LC_ALL, LC_CTYPE and LANG that is set decides."""
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return "utf8" in next(filter(None, names), "").lower().replace("-", "")
