"""Docker's filters: parsing, matching and times."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.api import filters
from control.errors import InvalidArgument
from control.model import Network, NetworkId, NetworkState

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def network(**fields: Any) -> Network:
    settings: dict[str, Any] = {
        "id": NetworkId("ab" * 32),
        "name": "blue",
        "driver": "bridge",
        "state": NetworkState.ACTIVE,
        "created": NOW,
        "segment": 1,
    }
    return Network(**(settings | fields))


@pytest.mark.parametrize("text", ['{"name":{"a":true,"b":true}}', '{"name":["a","b","a"]}'])
def test_both_forms_say_the_same(text: str) -> None:
    assert filters.parse(text, {"name"}) == {"name": ("a", "b")}


@pytest.mark.parametrize("text", ["", "{}", '{"name":{}}', '{"name":[]}'])
def test_no_values_are_no_filter(text: str) -> None:
    assert filters.parse(text, {"name"}) == {}


def test_an_unknown_key_is_named_even_without_values() -> None:
    with pytest.raises(InvalidArgument, match=r"^invalid filter 'colour'$"):
        filters.parse('{"colour":[]}', {"name"})


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    refusal = "invalid filter"
    try:
        filters.parse(text, filters.LIST_KEYS)
    except InvalidArgument as error:
        refusal = str(error)
    assert refusal.startswith("invalid filter")


@given(st.dictionaries(st.sampled_from(sorted(filters.LIST_KEYS)), st.lists(st.text(), min_size=1)))
def test_what_was_written_is_read(wanted: dict[str, list[str]]) -> None:
    read = filters.parse(json.dumps(wanted), filters.LIST_KEYS)
    assert {key: set(values) for key, values in read.items()} == {key: set(values) for key, values in wanted.items()}


@pytest.mark.parametrize(
    ("pattern", "value", "found"),
    [
        ("blue", "blue", True),
        ("lu", "blue", True),
        ("", "blue", True),
        ("^bl", "blue", True),
        ("ue$", "blue", True),
        ("^lu", "blue", False),
        ("b.*e", "blue", True),
        ("red|blue", "blue", True),
        (r"a\.b", "axb", False),
        (r"a\(b\)", "a(b)", True),
        ("[a-c]l", "blue", True),
        ("[", "blue", False),
        ("[", "a[b", True),
        ("BLUE", "blue", False),
    ],
)
def test_names_match_by_text_or_expression(pattern: str, value: str, found: bool) -> None:
    assert filters.match({"name": (pattern,)}, "name", value) is found


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_name_that_contains_the_value_always_matches(value: str, around: str) -> None:
    assert filters.match({"name": (value,)}, "name", around + value + around)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)(a|a)", "a*a*a*b", "a?" * 30 + "a" * 30, "a{0,99}a{0,99}a{0,99}"])
def test_an_expression_that_could_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match="are not supported"):
        filters.match({"name": (pattern,)}, "name", "b" * 128)


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (("team",), True),
        (("team=a",), True),
        (("team=a", "tier"), True),
        (("team=b",), False),
        (("team=a", "team=b"), False),
        (("nosuch",), False),
        (("tier=",), True),
        (("expr=x=y",), True),
    ],
)
def test_all_labels_must_match(wanted: tuple[str, ...], passes: bool) -> None:
    labels = {"team": "a", "tier": "", "expr": "x=y"}
    assert filters.labelled({"label": wanted}, "label", labels) is passes


def test_without_a_label_filter_everything_passes() -> None:
    assert filters.labelled({}, "label", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("1772600767", datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)),
        ("1772600767.123456789", datetime(2026, 3, 4, 5, 6, 7, 123456, tzinfo=UTC)),
        ("1772600767.", datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("10m", NOW - timedelta(minutes=10)),
        ("1h30m", NOW - timedelta(minutes=90)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("1h2m3s4ms5us", NOW - timedelta(hours=1, minutes=2, seconds=3, milliseconds=4, microseconds=5)),
        (".5s", NOW - timedelta(milliseconds=500)),
        ("-1h", NOW + timedelta(hours=1)),
        ("2\u00b5s", NOW - timedelta(microseconds=2)),
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T13:23", datetime(2026, 1, 2, 13, 23, tzinfo=UTC)),
        ("2026-01-02T13:23:37", datetime(2026, 1, 2, 13, 23, 37, tzinfo=UTC)),
        ("2026-01-02T13:23:37Z", datetime(2026, 1, 2, 13, 23, 37, tzinfo=UTC)),
        ("2026-01-02T13:23:37.123456789Z", datetime(2026, 1, 2, 13, 23, 37, 123456, tzinfo=UTC)),
        ("2026-01-02T13:23:37.5+02:00", datetime(2026, 1, 2, 11, 23, 37, 500000, tzinfo=UTC)),
    ],
)
def test_times_are_read_in_all_of_dockers_forms(text: str, expected: datetime) -> None:
    assert filters.timestamp(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "soon",
            "1d",
            "1 h",
            "h",
            "1h-1m",
            "+",
            "--1",
            "1e9",
            "1,5",
            "0x10",
            "nan",
            "9" * 30,
            "9" * 400 + "h",
        ),
        *("2026-13-01", "2026-01-02T25:00", "\u0661"),
    ],
)
def test_what_is_no_time_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(f"invalid time {text!r}")):
        filters.timestamp(text, NOW)


@given(st.text())
def test_any_text_is_a_time_or_is_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert filters.timestamp(text, NOW).tzinfo is UTC


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)))
def test_a_moment_is_the_same_in_seconds_and_in_rfc_3339(naive: datetime) -> None:
    moment = naive.replace(tzinfo=UTC)
    microseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert filters.timestamp(f"{microseconds // 10**6}.{microseconds % 10**6:06d}", NOW) == moment
    assert filters.timestamp(moment.isoformat(), NOW) == moment


@pytest.mark.parametrize(
    ("wanted", "fields", "in_use", "passes"),
    [
        ({}, {}, False, True),
        ({"dangling": ("true",)}, {}, False, True),
        ({"dangling": ("1",)}, {}, True, False),
        ({"dangling": ("true",)}, {"predefined": True}, False, False),
        ({"dangling": ("false",)}, {}, False, False),
        ({"dangling": ("0",)}, {}, True, True),
        ({"dangling": ("false",)}, {"predefined": True}, False, True),
        ({"type": ("builtin",)}, {"predefined": True}, False, True),
        ({"type": ("builtin",)}, {}, False, False),
        ({"type": ("custom",)}, {}, False, True),
        ({"type": ("custom", "builtin")}, {}, False, True),
        ({"driver": ("bridge",)}, {}, False, True),
        ({"driver": ("brid",)}, {}, False, False),
        ({"scope": ("local", "global")}, {}, False, True),
        ({"id": ("abab",)}, {}, False, True),
        ({"name": ("blue",), "driver": ("host",)}, {}, False, False),
    ],
)
def test_a_network_passes_when_every_filter_lets_it(
    wanted: filters.Filters, fields: dict[str, Any], in_use: bool, passes: bool
) -> None:
    record = network(**fields)
    assert filters.list_filter(wanted, {record.id} if in_use else set())(record) is passes


@pytest.mark.parametrize(
    ("wanted", "goes"),
    [
        ({}, True),
        ({"until": ("1s",)}, False),
        ({"until": ("-1s",)}, True),
        ({"until": ("2026-03-04T05:06:07Z",)}, True),
        ({"label": ("team",)}, True),
        ({"label": ("other",)}, False),
        ({"label!": ("team=a",)}, False),
        ({"label!": ("team=b",)}, True),
        ({"label": ("team",), "label!": ("team=a",)}, False),
    ],
)
def test_prune_takes_what_its_filters_let_through(wanted: filters.Filters, goes: bool) -> None:
    assert filters.prune_filter(wanted, NOW)(network(labels={"team": "a"})) is goes
