"""What `linkspan top` shows, and what keys do to it: lines of text from rows, without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from control.cli import top_text
from control.cli.errors import CliError
from control.cli.rates import Rates, Recorder, Row
from control.cli.top_rows import SORT_NAMES, SORTS, Filters, ordered, parse_filter, select
from control.cli.top_text import duration, fit, number, percent


class Style(StrEnum):
    TITLE = "title"
    HEADER = "header"
    PLAIN = "plain"
    DIM = "dim"
    SELECTED = "selected"
    ALERT = "alert"


class Line(NamedTuple):
    text: str
    style: Style = Style.PLAIN


class Column(NamedTuple):
    """`keep` says which columns stay on a narrow terminal: those of the lowest numbers."""

    head: str
    width: int
    keep: int
    show: Callable[[Rates], str]


def _quantile(found: Any, share: float) -> str:
    return duration(found.quantile(share) if found.buckets else None)


COLUMNS: Final = (
    Column("OUT b/s", 7, 0, lambda rates: number(rates.out_bits)),
    Column("IN b/s", 6, 0, lambda rates: number(rates.in_bits)),
    Column("OUT p/s", 7, 1, lambda rates: number(rates.out_packets)),
    Column("IN p/s", 6, 1, lambda rates: number(rates.in_packets)),
    Column("FAST", 4, 2, lambda rates: percent(rates.fast_share)),
    Column("P50", 6, 4, lambda rates: _quantile(rates.forwarding, 0.50)),
    Column("P99", 6, 3, lambda rates: _quantile(rates.forwarding, 0.99)),
    Column("RTT", 6, 3, lambda rates: _quantile(rates.tcp_rtt, 0.50)),
    Column("RTT P99", 7, 6, lambda rates: _quantile(rates.tcp_rtt, 0.99)),
    Column("DROP/s", 6, 2, lambda rates: number(rates.dropped)),
)
_SPARK_KEEP: Final = 5
_SPARK: Final = 12
_NAME_LEAST: Final = 14
_NAME_MOST: Final = 40
VIEWS: Final = ("tree", "networks", "endpoints")
_KEYS: Final = (
    "q           quit",
    "p, space    pause, and go on",
    "s, S        sort by the next, the previous figure",
    "r           reverse the order",
    "tab         networks and endpoints, networks, endpoints",
    "/           filter: parts of names, or name= network= driver= id=; empty for all",
    "up, down, page up, page down, home, end   select",
    "",
    "OUT is what a sandbox sends, IN is what it is delivered. FAST is the share of",
    "packets that programs carried. P50 and P99 are of the time from a packet's",
    "arrival on the host to its sandbox, RTT of the round trips of the sandboxes' TCP",
    "connections, both of the last 5 to 10 s. Bars are bits per second of the last",
    "minute, in and out together.",
)


@dataclass
class View:
    """The state of the screen; `press` changes it, `frame` draws it."""

    interval_s: float
    sort: str = "rate"
    filters: Filters = field(default_factory=dict)
    filter_text: str = ""
    is_reversed: bool = False
    is_paused: bool = False
    shows_help: bool = False
    shown: str = VIEWS[0]
    blocks: str = top_text.BLOCKS
    typed: str | None = None
    """What has been typed of a filter, None while none is."""
    complaint: str = ""
    _selected: str = ""
    _first: int = 0
    _page: int = 1
    _listed: list[str] = field(default_factory=list)

    # -- keys ----------------------------------------------------------------------------------------------------

    def press(self, key: str) -> bool:
        """Takes a key, a character or the name of one ("up", "enter", ...); returns False when it is to end."""
        self.complaint = ""
        if self.typed is not None:
            self._type(key, self.typed)
        elif self.shows_help:
            self.shows_help = False
            return key != "q"
        elif key in ("q", "Q"):
            return False
        elif key in ("p", " "):
            self.is_paused = not self.is_paused
        elif key in ("s", "S"):
            step = 1 if key == "s" else -1
            self.sort = SORT_NAMES[(SORT_NAMES.index(self.sort) + step) % len(SORT_NAMES)]
        elif key == "r":
            self.is_reversed = not self.is_reversed
        elif key == "tab":
            self.shown = VIEWS[(VIEWS.index(self.shown) + 1) % len(VIEWS)]
        elif key == "/":
            self.typed = self.filter_text
        elif key in ("?", "h"):
            self.shows_help = True
        else:
            self._move(key)
        return True

    def _type(self, key: str, typed: str) -> None:
        if key == "escape":
            self.typed = None
        elif key == "backspace":
            self.typed = typed[:-1]
        elif len(key) == 1 and key.isprintable():
            self.typed = typed + key
        elif key == "enter":
            try:
                self.filters, self.filter_text, self.typed = parse_filter(typed), typed.strip(), None
            except CliError as error:
                self.complaint = error.message

    def _move(self, key: str) -> None:
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -self._page, "page down": self._page}
        steps |= {"home": -len(self._listed), "end": len(self._listed)}
        if key in steps and self._listed:
            place = self._listed.index(self._selected) + steps[key]
            self._selected = self._listed[min(max(place, 0), len(self._listed) - 1)]

    # -- lines ---------------------------------------------------------------------------------------------------

    def frame(self, recorder: Recorder, clock: str, problem: str, width: int, height: int) -> list[Line]:
        """The lines of a screen of this size, exactly `height`, each of `width` columns.

        `clock` is the time to show, `problem` why there is nothing newer, or empty.
        """
        if self.shows_help:
            lines = [self._title(recorder, clock), Line(""), *map(Line, _KEYS)]
            return self._filled(lines, Line("any key goes back", Style.TITLE), width, height)
        head = [self._title(recorder, clock), self._totals(recorder, problem)]
        if self.typed is not None or self.filter_text or self.complaint:
            head.append(self._filter_line())
        columns = self._columns(width)
        name_width = self._name_width(columns, width)
        head.append(Line(self._cells("NETWORK, SANDBOX", [c.head for c in columns], columns, name_width), Style.HEADER))
        listed = list(self._list(select(recorder.rows, self.filters)))
        detail_height = 2 if height >= len(head) + 6 and listed else 0
        self._page = max(1, height - len(head) - detail_height - 1)
        self._scroll([row.id for _, row in listed])
        body = [
            self._row(recorder, depth, row, columns, name_width)
            for depth, row in listed[self._first : self._first + self._page]
        ]
        if not listed:
            what = "No network or endpoint passes the filter." if self.filters else "There are no networks."
            body = [Line(what if recorder.document else "", Style.DIM)]
        chosen = next((row for _, row in listed if row.id == self._selected), None)
        details = self._details(recorder, chosen, width) if chosen and detail_height else []
        gap = [Line("")] * max(0, height - len(head) - len(body) - len(details) - 1)
        return self._filled([*head, *body, *gap, *details], self._help_line(), width, height)

    @staticmethod
    def _filled(lines: Sequence[Line], last: Line, width: int, height: int) -> list[Line]:
        kept = [*lines[: height - 1], *[Line("")] * (height - 1 - len(lines)), last]
        return [Line(fit(line.text, width), line.style) for line in kept[-height:]]

    def _title(self, recorder: Recorder, clock: str) -> Line:
        host = recorder.document["host"] if recorder.document else ""
        paused = "  PAUSED" if self.is_paused else ""
        order = f"{self.sort}{', reversed' if self.is_reversed else ''}"
        return Line(f"linkspan top  {host}  {clock}  every {self.interval_s:g} s  by {order}{paused}", Style.TITLE)

    def _totals(self, recorder: Recorder, problem: str) -> Line:
        if problem:
            return Line(problem, Style.ALERT)
        document = recorder.document
        if document is None:
            return Line("asking linkspand", Style.DIM)
        known = [row.rates for row in recorder.rows if row.rates is not None]
        out, into, dropped = (sum(map(of, known)) for of in (SORTS["out"], SORTS["in"], SORTS["drops"]))
        endpoints = sum(len(row.endpoints) for row in recorder.rows)
        fallbacks = f", {len(document['fallbacks'])} fallbacks" if document["fallbacks"] else ""
        return Line(
            f"{len(recorder.rows)} networks, {endpoints} endpoints{fallbacks}: "
            f"out {number(out)} b/s, in {number(into)} b/s, dropped {number(dropped)} p/s"
        )

    def _filter_line(self) -> Line:
        text = f"filter: {self.filter_text if self.typed is None else self.typed + '_'}"
        return Line(f"{text}  {self.complaint}", Style.ALERT) if self.complaint else Line(text)

    def _help_line(self) -> Line:
        if self.typed is not None:
            return Line("enter takes the filter  escape leaves it as it was", Style.TITLE)
        return Line("q quit  p pause  s sort  r reverse  tab networks, endpoints  / filter  ? help", Style.TITLE)

    def _list(self, rows: Sequence[Row]) -> Iterator[tuple[int, Row]]:
        """The rows to show, each with how far its name is to be set in."""
        if self.shown == "endpoints":
            endpoints = [endpoint for row in rows for endpoint in row.endpoints]
            yield from ((0, row) for row in ordered(endpoints, self.sort, is_reversed=self.is_reversed))
            return
        for row in ordered(rows, self.sort, is_reversed=self.is_reversed):
            yield 0, row
            if self.shown == "tree":
                yield from ((2, endpoint) for endpoint in row.endpoints)

    def _scroll(self, listed: list[str]) -> None:
        """Keeps the selected row selected, and in sight."""
        if self._selected not in listed:
            place = self._listed.index(self._selected) if self._selected in self._listed else 0
            self._selected = listed[min(place, len(listed) - 1)] if listed else ""
        self._listed = listed
        place = listed.index(self._selected) if listed else 0
        self._first = min(max(self._first, place - self._page + 1), place, max(0, len(listed) - 1))
        self._first = max(0, min(self._first, len(listed) - self._page))

    def _columns(self, width: int) -> list[Column]:
        spark = Column("LAST MINUTE", _SPARK, _SPARK_KEEP, lambda rates: "")
        columns = [*COLUMNS, spark]
        while columns and _NAME_LEAST + sum(column.width + 1 for column in columns) > width:
            least = max(column.keep for column in columns)
            columns = [column for column in columns if column.keep != least]
        return columns

    @staticmethod
    def _name_width(columns: Sequence[Column], width: int) -> int:
        return min(_NAME_MOST, width - sum(column.width + 1 for column in columns))

    @staticmethod
    def _cells(name: str, cells: Sequence[str], columns: Sequence[Column], name_width: int) -> str:
        padded = [cell.rjust(column.width) for cell, column in zip(cells, columns, strict=True)]
        return " ".join([fit(name, name_width), *padded])

    def _row(self, recorder: Recorder, depth: int, row: Row, columns: Sequence[Column], name_width: int) -> Line:
        rates = row.rates
        cells = [column.show(rates) if rates is not None else top_text.UNKNOWN for column in columns]
        if columns and columns[-1].keep == _SPARK_KEEP:
            cells[-1] = top_text.sparkline(recorder.history(row.id), _SPARK, self.blocks)
        style = Style.DIM if rates is None else Style.ALERT if rates.dropped else Style.PLAIN
        if row.id == self._selected:
            style = Style.SELECTED
        return Line(self._cells(" " * depth + row.name, cells, columns, name_width), style)

    def _details(self, recorder: Recorder, row: Row, width: int) -> list[Line]:
        """The selected row in two lines: who it is, and its last minute with what it dropped."""
        where = f"{row.driver} network" if row.id in {each.id for each in recorder.rows} else f"on {row.network}"
        who = " ".join([row.name, where, row.id[:12], *row.addresses])
        history = recorder.history(row.id)
        bars = top_text.sparkline(history, min(60, max(10, width // 4)), self.blocks)
        drops = row.rates.drops if row.rates is not None else {}
        reasons = ", ".join(f"{reason} {number(rate)}/s" for reason, rate in sorted(drops.items()))
        peak = f"peak {number(max(history))} b/s" if history else ""
        return [Line(who, Style.HEADER), Line(f"last minute {bars} {peak}  {f'dropped: {reasons}' if reasons else ''}")]
