"""`linkspan top` without a terminal: rates from documents, order, filters, and what fits on a screen."""

from __future__ import annotations

from typing import Any

import pytest

from control.cli.errors import CliError
from control.cli.rates import Recorder
from control.cli.top_rows import ordered, parse_filter, select
from control.cli.top_text import duration, fit, number, percent, sparkline
from control.cli.top_view import Style, View

TALLIES = [
    f"{way}_{path}_{unit}" for way in ("out", "in") for path in ("fast", "slow") for unit in ("packets", "bytes")
]


def endpoint(
    name: str, *tallies: int, drops: dict[str, int] | None = None, **latency: dict[str, int]
) -> dict[str, Any]:
    """Tallies are packets and bytes: out fast, out slow, in fast, in slow; none for an endpoint that nobody counts."""
    return {
        "id": name.encode().hex(),
        "name": name,
        "ipv4": "10.9.0.2",
        "ipv6": "",
        "mac": "02:00:00:00:00:02",
        "counters": dict(zip(TALLIES, (*tallies, *[0] * (8 - len(tallies))), strict=True)) if tallies else None,
        "drops": drops or {},
        "latency": {kind: {"buckets": buckets, "seconds": 0.0} for kind, buckets in latency.items()},
    }


def document(second: float, fallbacks: int = 0, **networks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "at": 1e9 + second,
        "monotonic": second,
        "host": "hull",
        "networks": [
            {"id": f"{name}-id", "name": name, "driver": "bridge", "endpoints": endpoints}
            for name, endpoints in networks.items()
        ],
        "fallbacks": {f"feature {number}": "missing" for number in range(fallbacks)},
    }


def recorded(*documents: dict[str, Any]) -> Recorder:
    recorder = Recorder(1.0)
    for each in documents:
        recorder.add(each)
    return recorder


def busy() -> Recorder:
    """Two seconds of two networks: web sends 3 packets of 4 fast, db gets them and drops; idle does nothing."""
    return recorded(
        document(1, blue=[endpoint("web", 10, 1000), endpoint("db", 0)], red=[endpoint("idle", 5, 5)], host=[]),
        document(
            3,
            blue=[
                endpoint("web", 16, 2500, 2, 500),
                endpoint("db", 0, 0, 0, 0, 6, 1500, 2, 500, drops={"spoofed_mac": 4}),
            ],
            red=[endpoint("idle", 5, 5)],
            host=[endpoint("nginx")],
        ),
    )


def test_rates_are_what_counters_grew_by_in_a_second() -> None:
    blue = busy().rows[0]
    web, db = (each.rates for each in blue.endpoints)
    assert web is not None
    assert db is not None
    assert (web.out_bits, web.in_bits, web.out_packets, web.in_packets) == (8000, 0, 4, 0)
    assert (web.fast_share, db.in_bits, db.drops) == (0.75, 8000, {"spoofed_mac": 2})
    assert blue.rates is not None
    assert (blue.rates.out_bits, blue.rates.in_bits, blue.rates.packets, blue.rates.dropped) == (8000, 8000, 8, 2)


def test_nothing_is_said_of_what_is_not_known() -> None:
    """After one document, of an endpoint that has just joined, that nobody counts, or whose counters began anew."""
    assert [row.rates for row in recorded(document(1, blue=[endpoint("web", 1)])).rows] == [None]
    rows = recorded(
        document(1, blue=[endpoint("web", 9), endpoint("host")]),
        document(2, blue=[endpoint("web", 8), endpoint("host"), endpoint("new", 7)]),
    ).rows
    assert [each.rates for each in (rows[0], *rows[0].endpoints)] == [None] * 4


def test_a_network_without_endpoints_is_known_to_be_quiet() -> None:
    rates = recorded(document(1, blue=[]), document(2, blue=[])).rows[0].rates
    assert rates is not None
    assert (rates.bits, rates.fast_share) == (0, None)


def test_documents_from_before_a_reboot_are_forgotten() -> None:
    recorder = recorded(document(900, blue=[endpoint("web", 9)]), document(2, blue=[endpoint("web", 10)]))
    assert recorder.rows[0].rates is None
    recorder.add(document(3, blue=[endpoint("web", 12)]))
    rates = recorder.rows[0].rates
    assert rates is not None
    assert rates.out_packets == 2


def test_latencies_are_of_the_last_seconds_and_of_all_endpoints() -> None:
    def at(second: int, count: int) -> dict[str, Any]:
        return document(second, blue=[endpoint("a", 1, fast={"-80": count}), endpoint("b", 1, slow={"-40": 7})])

    recorder = recorded(*(at(second, 10 * second) for second in range(1, 31)))
    rates = recorder.rows[0].rates
    assert rates is not None
    assert rates.forwarding.buckets == {-80: 90}, "of the nine seconds since one that is at least five seconds old"
    assert not rates.tcp_rtt.buckets
    recorder.add(document(31, blue=[endpoint("a", 1, fast={"-80": 310}, tcp_rtt={"-40": 5}), endpoint("b", 1)]))
    rates = recorder.rows[0].rates
    assert rates is not None
    assert rates.tcp_rtt.quantile(0.5) == pytest.approx(2**-10, rel=0.1)


def test_the_history_is_a_minute_long_and_goes_with_its_endpoint() -> None:
    recorder = recorded(*(document(second, blue=[endpoint("web", second, 10 * second)]) for second in range(70)))
    web = b"web".hex()
    assert list(recorder.history(web)) == [80.0] * 60
    recorder.add(document(70, blue=[]))
    assert not recorder.history(web)
    assert len(recorder.history("blue-id")) == 60


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("rate", ["blue", "red", "host"]),
        ("drops", ["blue", "red", "host"]),
        ("name", ["blue", "host", "red"]),
        ("p99", ["blue", "red", "host"]),
    ],
)
def test_rows_are_ordered_and_the_unknown_come_last(sort: str, names: list[str]) -> None:
    assert [row.name for row in ordered(busy().rows, sort)] == names


def test_endpoints_are_ordered_within_their_network() -> None:
    rows = busy().rows
    assert [each.name for each in ordered(rows, "out")[0].endpoints] == ["web", "db"]
    assert [each.name for each in ordered(rows, "in")[0].endpoints] == ["db", "web"]
    turned = ordered(rows, "in", is_reversed=True)
    assert [row.name for row in turned] == ["red", "blue", "host"]
    assert [each.name for each in turned[1].endpoints] == ["web", "db"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web", {"blue": ["web"]}),
        ("b", {"blue": ["web", "db"]}),
        ("name=web name=idle", {"blue": ["web"], "red": ["idle"]}),
        ("network=red", {"red": ["idle"]}),
        ("driver=bridge web", {"blue": ["web"]}),
        (f"id={b'db'.hex()}", {"blue": ["db"]}),
        ("driver=overlay", {}),
        ("", {"blue": ["web", "db"], "red": ["idle"], "host": ["nginx"]}),
    ],
)
def test_filters_select_networks_whole_or_by_their_endpoints(text: str, shown: dict[str, list[str]]) -> None:
    found = select(busy().rows, parse_filter(text))
    assert {row.name: [each.name for each in row.endpoints] for row in found} == shown


def test_an_unknown_filter_is_said_with_those_there_are() -> None:
    with pytest.raises(CliError, match="'nmae': networks and endpoints are filtered by driver, id, name, network"):
        parse_filter("nmae=web")


def screen(view: View, recorder: Recorder, width: int = 80, height: int = 24, problem: str = "") -> list[str]:
    lines = view.frame(recorder, "12:00:00", problem, width, height)
    assert len(lines) == height
    assert {len(line.text) for line in lines} == {width}
    return [line.text.rstrip() for line in lines]


def test_80_by_24_shows_rates_latency_and_drops() -> None:
    assert screen(View(1.0), busy())[:9] == [
        "linkspan top  hull  12:00:00  every 1 s  by rate",
        "3 networks, 4 endpoints: out 8.00k b/s, in 8.00k b/s, dropped 2.0 p/s",
        "NETWORK, SANDBOX  OUT b/s IN b/s OUT p/s IN p/s FAST    P50    P99    RTT DROP/s",
        "blue                8.00k  8.00k     4.0    4.0  75%      -      -      -    2.0",
        "  db                    0  8.00k       0    4.0  75%      -      -      -    2.0",
        "  web               8.00k      0     4.0      0  75%      -      -      -      0",
        "red                     0      0       0      0    -      -      -      -      0",
        "  idle                  0      0       0      0    -      -      -      -      0",
        "host                    -      -       -      -    -      -      -      -      -",
    ]
    assert screen(View(1.0), busy())[-3:-1] == [
        "blue bridge network blue-id",
        "last minute                    █ peak 16.0k b/s  dropped: spoofed_mac 2.0/s",
    ]


@pytest.mark.parametrize(("width", "height"), [(200, 50), (100, 24), (60, 12), (40, 6), (20, 3), (5, 2), (1, 1)])
def test_any_size_is_filled(width: int, height: int) -> None:
    for keys in ("", "?", "/x"):
        view = View(1.0)
        for key in keys:
            view.press(key)
        screen(view, busy(), width, height)


def test_what_is_selected_stays_in_sight_and_selected() -> None:
    many = [document(at, blue=[endpoint(f"s{place}", 0, at * place) for place in range(50)]) for at in (1, 2)]
    view, recorder = View(1.0, sort="name"), recorded(*many)
    shown = screen(view, recorder)
    assert (shown[3].split()[0], shown[-4].split()[0]) == ("blue", "s16")
    for key in ("down", "page down", "down"):
        assert view.press(key)
        shown = screen(view, recorder)
    chosen = [line.text.split()[0] for line in view.frame(recorder, "", "", 80, 24) if line.style is Style.SELECTED]
    assert chosen == ["s19"]
    view.press("end")
    assert "s49" in screen(view, recorder)[-4]
    view.press("s")  # by rate: s49 is the first, and the selection goes with it
    shown = screen(view, recorder)
    assert (shown[3].split()[0], shown[-3].split()[0]) == ("s49", "s49")


def test_keys_pause_sort_reverse_and_change_what_is_listed() -> None:
    view, recorder = View(1.0), busy()
    for key in ("p", "s", "r", "tab", "tab"):
        assert view.press(key)
    shown = screen(view, recorder)
    assert shown[0] == "linkspan top  hull  12:00:00  every 1 s  by out, reversed  PAUSED"
    assert [line.split()[0] for line in shown[3:7]] == ["db", "idle", "web", "nginx"]
    assert not view.press("q")


def test_a_filter_is_typed_taken_and_left() -> None:
    view, recorder = View(1.0), busy()
    for key in ("/", "x", "=", "1", "enter"):
        view.press(key)
    assert "filter: x=1_  invalid filter 'x'" in screen(view, recorder)[2]
    for key in ("backspace", "backspace", "backspace", "w", "q", "escape"):
        view.press(key)
    assert "filter" not in screen(view, recorder)[2]
    for key in ("/", "z", "z", "enter"):
        view.press(key)
    assert screen(view, recorder)[2:5] == [
        "filter: zz",
        "NETWORK, SANDBOX  OUT b/s IN b/s OUT p/s IN p/s FAST    P50    P99    RTT DROP/s",
        "No network or endpoint passes the filter.",
    ]


def test_no_networks_fallbacks_and_trouble_are_said() -> None:
    assert "There are no networks." in screen(View(1.0), recorded(document(1)))
    assert screen(View(1.0), recorded(document(1, 2)))[1].startswith("0 networks, 0 endpoints, 2 fallbacks:")
    assert screen(View(1.0), busy(), problem="Cannot connect")[1] == "Cannot connect"
    assert screen(View(1.0), Recorder(1.0))[1] == "asking linkspand"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (0.01, "0.1"), (9.94, "9.9"), (9.96, "10"), (999.4, "999"), (999.6, "1.00k"), (12345, "12.3k")],
        *[(999_400, "999k"), (999_600, "1.00M"), (1.5e9, "1.50G"), (99.96e9, "100G"), (3e12, "3.00T")],
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (8.4e-7, "840ns"), (1e-6, "1.00us"), (1.234e-5, "12.3us"), (0.00099999, "1.00ms"), (12.0, "12.0s")],
)
def test_durations_have_three_digits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_only_all_are_100_percent() -> None:
    assert [percent(share) for share in (None, 0.0, 0.5, 0.9999, 1.0)] == ["-", "0%", "50%", "99%", "100%"]


def test_bars_reach_to_the_largest_value() -> None:
    assert sparkline([0, 1, 50, 100], 6) == "  ▁▂▅█"
    assert sparkline([*[0.0] * 90, *[5.0] * 10], 10) == "▁▁▁▁▁▁▁▁▁█"
    assert (sparkline([], 3), sparkline([0, 0], 3)) == ("   ", " ▁▁")


def test_names_cannot_move_the_cursor() -> None:
    assert fit("a\x1b[2Jb\n\u202ec", 12) == "a?[2Jb??c   "
    assert fit("鲸鱼鲸鱼", 6) == "鲸鱼~ "
    assert fit("long name", 5) == "long~"
