"""The terminal: one line that moves while a step is under way and stays when it is done; without a terminal, only
what stays."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from typing import TextIO

_FRAME_S = 0.08
_BAR_CELLS = 10
_TEXT_CELLS = 57
_CLEAR_LINE = "\r\x1b[K"
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_SPINNER = "|/-\\"


class Style:
    """Colours where they are wanted (https://no-color.org), and marks that the output's encoding has."""

    __slots__ = ("bar", "bar_rest", "colours", "cross", "moves", "rule", "spinner", "tick")

    def __init__(self, out: TextIO, env: Mapping[str, str]) -> None:
        self.moves = out.isatty() and env.get("TERM") != "dumb"
        """Whether lines may be written over."""
        self.colours = self.moves and not env.get("NO_COLOR")
        try:
            f"✓✗━─{_SPINNER}".encode(out.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            self.tick, self.cross, self.bar, self.bar_rest, self.rule = "ok", "NO", "#", ".", "-"
            self.spinner = _PLAIN_SPINNER
        else:
            self.tick, self.cross, self.bar, self.bar_rest, self.rule = "✓", "✗", "━", "─", "─"
            self.spinner = _SPINNER

    def paint(self, text: str, code: str) -> str:
        """``text`` in the colour or weight of an SGR code (ECMA-48)."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and text else text

    def bold(self, text: str) -> str:
        return self.paint(text, "1")

    def dim(self, text: str) -> str:
        return self.paint(text, "2")

    def mark(self, passed: bool) -> str:
        return self.paint(self.tick, "32") if passed else self.paint(self.cross, "31;1")


class Screen:
    """Prints lines, and the progress of one step at a time. ``async with`` keeps the moving line alive."""

    # Mutable state: the current step (`_text` is empty between steps), written by `begin`, `advance` and `finish`.
    def __init__(self, out: TextIO, env: Mapping[str, str]) -> None:
        self._out = out
        self.style = Style(out, env)
        self._text = ""
        self._done = self._total = 0
        self._began_at = 0.0
        self._frames: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Screen:
        if self.style.moves:
            self._frames = asyncio.get_running_loop().create_task(self._animate())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._frames is not None:
            self._frames.cancel()
            await asyncio.wait((self._frames,))
        if self._text and self.style.moves:
            self._out.write(_CLEAR_LINE)
        self._text = ""
        self._out.flush()

    def print(self, line: str = "") -> None:
        """A line that stays. Not while a step is under way."""
        self._out.write(line + "\n")
        self._out.flush()

    def begin(self, text: str, total: int) -> None:
        """A step of ``total`` requests begins."""
        self._text, self._done, self._total = text, 0, total
        self._began_at = time.monotonic()
        self._draw()

    def advance(self) -> None:
        """One of the step's requests is over; seen with the next frame."""
        self._done += 1

    def finish(self, remark: str, *, passed: bool) -> None:
        """The step is over."""
        took_s = time.monotonic() - self._began_at
        text, self._text = self._text, ""
        if self.style.moves:
            self._out.write(_CLEAR_LINE)
        took = self.style.dim(f"{took_s:5.1f} s")
        self.print(f" {self.style.mark(passed)} {text:<{_TEXT_CELLS}}{took}  {remark}".rstrip())

    async def _animate(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(_FRAME_S)

    def _draw(self) -> None:
        if not self._text or not self.style.moves:
            return
        style = self.style
        frame = style.spinner[int((time.monotonic() - self._began_at) / _FRAME_S) % len(style.spinner)]
        cells = _BAR_CELLS * self._done // self._total if self._total else 0
        count = f"{self._done}/{self._total}"
        # A line that wraps could not be written over.
        room = shutil.get_terminal_size().columns - _BAR_CELLS - len(count) - 6
        text = self._text.ljust(_TEXT_CELLS)[: max(0, room)]
        bar = style.paint(style.bar * cells, "36") + style.dim(style.bar_rest * (_BAR_CELLS - cells))
        self._out.write(f"{_CLEAR_LINE} {style.paint(frame, '36')} {text} {bar} {count}")
        self._out.flush()
