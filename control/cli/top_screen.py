"""The terminal of `linkspan top`: a thread takes documents, the main one draws and reads keys with curses."""

from __future__ import annotations

import curses
import locale
import os
import threading
import time
from contextlib import suppress
from typing import Any, Final

from control.cli.client import Client
from control.cli.errors import CliError
from control.cli.rates import STATS_PATH, Document, Recorder
from control.cli.top_text import ASCII_BLOCKS
from control.cli.top_view import Style, View

_LOOK_AGAIN_MS: Final = 100
"""How long a new document, or a new size of the terminal, may wait to be drawn; keys do not."""
_NAMES: Final = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_BACKSPACE: "backspace",
    curses.KEY_ENTER: "enter",
    "\t": "tab",
    "\n": "enter",
    "\r": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
}


class Sampler:
    """Asks for a document every `interval_s` in a thread of its own, so that a daemon that hangs does not hold up keys.

    `take` gives what came since the last call; `problem` says why nothing does, and is empty while all is well.
    """

    def __init__(self, client: Client, interval_s: float) -> None:
        self._client, self._interval_s = client, interval_s
        self._lock = threading.Lock()
        self._documents: list[Document] = []
        self._answered_at = ""
        self.problem = ""
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def take(self) -> list[Document]:
        with self._lock:
            taken, self._documents = self._documents, []
        return taken

    def _run(self) -> None:
        while True:
            due = time.monotonic() + self._interval_s
            try:
                document = self._client.get(STATS_PATH)
            except CliError as error:
                since = f" (shown: {self._answered_at})" if self._answered_at else ""
                self.problem = f"{error.message.splitlines()[0]}{since}"
            else:
                with self._lock:
                    self._documents.append(document)
                self._answered_at, self.problem = clock(document), ""
            time.sleep(max(0.0, due - time.monotonic()))


def clock(document: Document) -> str:
    """When the document's counters were read, as local time."""
    return time.strftime("%H:%M:%S", time.localtime(document["at"]))


def show(client: Client, view: View) -> None:
    """Draws until a key ends it; raises CliError when the terminal cannot be drawn on."""
    locale.setlocale(locale.LC_ALL, "")
    if locale.nl_langinfo(locale.CODESET).upper() != "UTF-8":
        view.blocks = ASCII_BLOCKS
    try:
        curses.wrapper(_run, client, view)
    except curses.error as error:
        raise CliError(f"linkspan top cannot draw on this terminal: {error}; use --json, or set TERM") from error


def _run(window: Any, client: Client, view: View) -> None:
    curses.set_escdelay(25)
    window.timeout(_LOOK_AGAIN_MS)
    attributes = _attributes()
    sampler, recorder = Sampler(client, view.interval_s), Recorder(view.interval_s)
    drawn: Any = None
    is_going = True
    while is_going:
        if not view.is_paused:
            for document in sampler.take():
                recorder.add(document)
        _fit(window)
        height, width = window.getmaxyx()
        time_shown = clock(recorder.document) if recorder.document else ""
        lines = view.frame(recorder, time_shown, sampler.problem, width, height)
        if lines != drawn:
            drawn = lines
            for y, line in enumerate(lines):
                # Inserted, because the last cell of a screen cannot be written: the cursor has nowhere to go.
                window.insstr(y, 0, line.text, attributes[line.style])
            window.refresh()
        key = _key(window)
        if key == curses.KEY_RESIZE:
            window.erase()
            drawn = None
        elif key is not None:
            is_going = view.press(_NAMES.get(key, key if isinstance(key, str) else ""))


def _fit(window: Any) -> None:
    """Gives the window the terminal's size: SIGWINCH may reach the thread that asks, where curses misses it."""
    columns, rows = os.get_terminal_size()
    if curses.is_term_resized(rows, columns):
        curses.resizeterm(rows, columns)
        window.erase()


def _key(window: Any) -> Any:
    """A character, the number of a special key, or None when none was pressed for a while."""
    try:
        return window.get_wch()
    except curses.error:
        return None


def _attributes() -> dict[Style, int]:
    with suppress(curses.error):  # a terminal that always shows its cursor
        curses.curs_set(0)
    alert = curses.A_BOLD
    if curses.has_colors():
        curses.use_default_colors()
        curses.init_pair(1, curses.COLOR_RED, -1)
        alert = curses.color_pair(1)
    return {
        Style.TITLE: curses.A_REVERSE,
        Style.HEADER: curses.A_BOLD,
        Style.PLAIN: curses.A_NORMAL,
        Style.DIM: curses.A_DIM,
        Style.SELECTED: curses.A_REVERSE,
        Style.ALERT: alert,
    }
