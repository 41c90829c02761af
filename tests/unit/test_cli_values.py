"""Flags, subnets, alignment, order and indentation: the parts of the command line that are plain functions."""

from __future__ import annotations

import io
import ipaddress
import json
from contextlib import redirect_stdout
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cli.errors import CliError
from control.cli.inspecting import inspect_all
from control.cli.natural import natural_key
from control.cli.shapes import NETWORK
from control.cli.subnets import ipam_config
from control.cli.tabwriter import aligned
from control.cli.values import Bool, Filter, Int, Map, Strings, label, link


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_switches_take_gos_words_for_true(text: str) -> None:
    assert Bool().parse(text) is True


@pytest.mark.parametrize("text", ["yes", "on", "", "tRUE", "2", " true"])
def test_switches_refuse_other_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"strconv\.ParseBool"):
        Bool().parse(text)


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("-3", -3), ("+7", 7), ("0x10", 16), ("010", 8), ("0b11", 3), ("0", 0)]
)
def test_integers_have_gos_bases(text: str, value: int) -> None:
    assert Int().parse(text) == value


@pytest.mark.parametrize("text", ["", "x", "1.5", "9223372036854775808", "08", "1 2"])
def test_integers_refuse_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"strconv\.ParseInt"):
        Int().parse(text)


def test_lists_are_comma_separated_and_repeatable() -> None:
    kind = Strings()
    assert kind.collect([kind.parse("a,b"), kind.parse(""), kind.parse('"c,d",e')]) == ["a", "b", "c,d", "e"]
    with pytest.raises(ValueError, match="not a comma-separated list"):
        kind.parse('"open')


def test_the_last_value_of_a_key_counts() -> None:
    kind = Map()
    assert kind.collect([kind.parse(text) for text in ("a=1", "b", "a=2=3", "=x")]) == {"a": "2=3", "b": "", "": "x"}


def test_filters_have_the_engines_form() -> None:
    kind = Filter()
    values = [kind.parse(text) for text in ("driver=bridge", "Driver = host", "label=a=b", "")]
    assert kind.collect(values) == {"driver": {"bridge": True, "host": True}, "label": {"a=b": True}}
    with pytest.raises(ValueError, match=r"bad format of filter \(expected name=value\)"):
        kind.parse("driver")


@pytest.mark.parametrize(("check", "text"), [(label, ""), (label, "=x"), (label, "a b=c"), (link, ""), (link, "a:b:c")])
def test_malformed_labels_and_links_are_refused(check: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"label|link"):
        check(text)


@given(
    st.lists(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/24", "fd00::/64", "fd00::/80"]), unique=True)
)
def test_subnets_overlap_exactly_when_ipaddress_says_so(subnets: list[str]) -> None:
    networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    overlap = any(
        one.version == other.version and one.overlaps(other)  # type: ignore[arg-type]
        for index, one in enumerate(networks)
        for other in networks[:index]
    )
    if overlap:
        with pytest.raises(CliError, match="multiple overlapping subnet configuration is not supported"):
            ipam_config(subnets, [], [], {})
    else:
        assert [entry["Subnet"] for entry in ipam_config(subnets, [], [], {})] == subnets


def test_ranges_gateways_and_auxiliary_addresses_find_their_subnets() -> None:
    config = ipam_config(
        ["10.0.0.0/24", "fd00::/64"],
        ["fd00::/80", "10.0.0.128/25"],
        ["10.0.0.1", "fd00::1"],
        {"a": "fd00::5", "b": "10.0.0.9"},
    )
    assert config == [
        {
            "Subnet": "10.0.0.0/24",
            "IPRange": "10.0.0.128/25",
            "Gateway": "10.0.0.1",
            "AuxiliaryAddresses": {"b": "10.0.0.9"},
        },
        {"Subnet": "fd00::/64", "IPRange": "fd00::/80", "Gateway": "fd00::1", "AuxiliaryAddresses": {"a": "fd00::5"}},
    ]


@pytest.mark.parametrize(
    "subnet", ["10.0.0.0/33", "10.0.0.0/x", "10.0.0.0/-1", "10.0.0.0", "/24", "10.0.0/24", "10.0.0.0/255.0.0.0"]
)
def test_what_is_no_cidr_is_named(subnet: str) -> None:
    with pytest.raises(CliError) as refusal:
        ipam_config([subnet], [], ["10.0.0.1"], {})
    assert refusal.value.message == f"invalid subnet: invalid CIDR address: {subnet}"


def test_names_are_listed_as_people_count() -> None:
    names = ["net10", "net9", "net", "Net2", "net09", "a-b", "a1", "net9b", "日本"]
    assert sorted(names, key=natural_key) == ["Net2", "a-b", "a1", "net", "net9", "net9b", "net09", "net10", "日本"]


@given(st.lists(st.lists(st.text("ab日 ", max_size=14), min_size=2, max_size=2), min_size=1, max_size=6))
def test_columns_start_under_each_other(rows: list[list[str]]) -> None:
    lines = aligned("".join("\t".join(row) + "\n" for row in rows)).splitlines()
    width = {
        len(line) + line.count("日") - len(row[1]) - row[1].count("日") for line, row in zip(lines, rows, strict=True)
    }
    longest = max(len(row[0]) + row[0].count("日") for row in rows)
    assert width == {max(longest + 3, 10)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=3), st.sampled_from([None, 2]))
def test_inspect_lays_out_any_json_as_the_standard_library(values: list[Any], indent: int | None) -> None:
    bodies = {str(index): json.dumps(value, indent=indent).encode() for index, value in enumerate(values)}
    for format, expected in (
        ("", json.dumps(values, indent=4)),
        ("json", json.dumps(values, separators=(",", ":"))),
    ):
        with redirect_stdout(io.StringIO()) as output:
            assert inspect_all(list(bodies), format, bodies.__getitem__, NETWORK) == 0
        assert output.getvalue() == f"{expected}\n"


@pytest.mark.parametrize("body", [b"", b"{", b"[1,]", b"\xff"])
def test_inspect_says_so_when_the_answer_is_no_json(body: bytes) -> None:
    for format in ("", "json"):
        with pytest.raises(CliError, match="unable to read inspect data"):
            inspect_all(["x"], format, lambda name: body, NETWORK)
    assert inspect_all(["x"], "{{.Name}}", lambda name: body, NETWORK) == 1
