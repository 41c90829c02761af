"""Templates without a docker client to compare with: what each construct makes, and that nothing else can happen."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cli.functions import FUNCTIONS
from control.cli.gotext import quoted, sprintf, to_json, unquote
from control.cli.shapes import NETWORK
from control.cli.template import Template, TemplateError

DATA: dict[str, Any] = {
    "Name": "web",
    "N": 3,
    "On": True,
    "List": ["a", "b"],
    "Map": {"k2": "v2", "k1": "v1"},
    "Nested": {"List": [{"X": 1}, {"X": 2}]},
    "Null": None,
}
# As Go's documentation says; the contract suite asks the real docker client about the same and more.
CASES = [
    ("plain", "plain"),
    ("{{.Name}}", "web"),
    ("{{.Nested.List}}", "[map[X:1] map[X:2]]"),
    ("{{(index .Nested.List 1).X}}", "2"),
    ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
    ("{{range $i, $x := .List}}{{$i}}{{$x}}{{end}}", "0a1b"),
    ("{{range $k, $v := .Map}}{{$k}}={{$v}};{{end}}", "k1=v1;k2=v2;"),
    ("{{range .Missing}}x{{else}}none{{end}}", "none"),
    ("{{range $i, $x := .List}}{{if $i}}, {{end}}{{$x}}{{end}}", "a, b"),
    ("{{if .On}}on{{else}}off{{end}}", "on"),
    ("{{if eq .N 1}}one{{else if eq .N 3}}three{{else}}many{{end}}", "three"),
    ("{{with .Map}}{{.k1}}{{end}}", "v1"),
    ("{{with .Missing}}x{{else}}y{{end}}", "y"),
    ("{{$x := .Name}}{{range .List}}{{$x}}{{end}}", "webweb"),
    ('{{.Name | upper | printf "%-5s|"}}', "WEB  |"),
    ("a {{- .Name -}} b", "awebb"),
    ("{{/* nothing */}}x", "x"),
    ("{{json .Map}}", '{"k1":"v1","k2":"v2"}'),
    ("{{json .Null}} {{.Null}} {{.Missing}}", "null <no value> <no value>"),
    ("{{len .List}} {{len .Name}}", "2 3"),
    ('{{join .List "+"}} {{join (split "a,b" ",") " "}}', "a+b a b"),
    ('{{join .Map ","}}|{{join nil ","}}|{{join .Nested.List ";"}}', "v1,v2||map[X:1];map[X:2]"),
    ("{{and .On .Name}} {{or .Null 0 .Name}} {{not .On}}", "web web false"),
    ('{{lt 1 2}} {{le 2 1}} {{gt "b" "a"}} {{ge 1 1}} {{ne 1 1}} {{eq .N 1 2 3}}', "true false true true false true"),
    ('{{printf "%05d %x %q %v %s" 42 255 "a" .List .Name}}', '00042 ff "a" [a b] web'),
    ('{{print 1 2}}{{println "x"}}', "1 2x\n"),
    ('{{title "hello world"}} {{lower "ABC"}}', "Hello World abc"),
    ("{{range 3}}{{if eq . 1}}{{continue}}{{end}}{{.}}{{end}}", "02"),
    ("{{range .List}}{{break}}{{end}}x", "x"),
    (
        "{{$}}",
        "map[List:[a b] Map:map[k1:v1 k2:v2] N:3 Name:web Nested:map[List:[map[X:1] map[X:2]]] Null:<nil> On:true]",
    ),
]
BROKEN = [
    ("{{.Name", "template: :1: unclosed action"),
    ("{{if .Name}}x", "template: :1: unexpected EOF"),
    ("{{end}}", "template: :1: unexpected {{end}}"),
    ("\n{{foo}}", 'template: :2: function "foo" not defined'),
    ("{{$x}}", 'template: :1: undefined variable "$x"'),
    ('{{"x}}', "template: :1: unterminated quoted string"),
    ("{{}}", "template: :1: missing value for command"),
    ("{{(.Name}}", "template: :1: unclosed left paren"),
    ("{{.Name | 5}}", "template: :1: non executable command in pipeline stage 2"),
    ('{{define "x"}}{{end}}', "template: :1: named templates are not supported: {{define}}"),
    ("{{if 1}}" * 101 + "{{end}}" * 101, "template: :1: max nesting depth exceeded"),
    ("{{" + "(" * 101 + "1" + ")" * 101 + "}}", "template: :1: max expression depth exceeded"),
]
FAILING = [
    ("{{.Name.X}}", "can't evaluate field X in type interface {}"),
    (
        "x\n  {{index .List 5}}",
        'template: :2:4: executing "" at <index .List 5>: error calling index: index out of range: 5',
    ),
    ("{{upper .N}}", "wrong type for value; expected string; got int"),
    ("{{upper 5}}", "expected string; found 5"),
    ("{{upper}}", "wrong number of args for upper: want 1 got 0"),
    ('{{eq 1 "a"}}', "error calling eq: incompatible types for comparison"),
    ("{{range .Name}}{{end}}", "range can't iterate over web"),
    ("{{5 .Name}}", "can't give argument to non-function 5"),
    ("{{len nil}}", "error calling len: len of nil pointer"),
    ("{{pad .Name 2000000 0}}", "error calling pad: more than 1000000 spaces"),
]


@pytest.mark.parametrize(("template", "expected"), CASES)
def test_a_construct_makes_what_go_makes_of_it(template: str, expected: str) -> None:
    assert Template(template).execute(DATA) == expected


@pytest.mark.parametrize(("template", "problem"), BROKEN)
def test_a_broken_template_is_refused_when_parsed(template: str, problem: str) -> None:
    with pytest.raises(TemplateError) as refusal:
        Template(template)
    assert str(refusal.value) == problem


@pytest.mark.parametrize(("template", "problem"), FAILING)
def test_a_failing_template_says_where_and_why(template: str, problem: str) -> None:
    with pytest.raises(TemplateError) as refusal:
        Template(template).execute(DATA)
    assert str(refusal.value).endswith(problem)


def test_what_was_made_before_an_error_can_be_kept() -> None:
    output: list[str] = []
    with pytest.raises(TemplateError):
        Template("{{.Name}} {{index .List 9}}").write(output, DATA)
    assert "".join(output) == "web "


def test_a_missing_key_can_be_an_error() -> None:
    with pytest.raises(TemplateError, match='map has no entry for key "Missing"'):
        Template("{{.Missing}}").execute(DATA, missing_is_error=True)


def test_a_network_has_dockers_zero_values() -> None:
    network = NETWORK({"Name": "n", "Id": "1", "Created": "2024-01-02T03:04:05.5+02:00"})
    text = "{{.Created}} {{.Labels}} {{json .Labels}} {{.IPAM.Config}} {{json .IPAM.Config}} {{.Attachable}}"
    assert Template(text).execute(network) == "2024-01-02 03:04:05.5 +0200 +0200 map[] null [] null false"


# Pieces of templates, put together at random: most are nonsense, some are not.
WORDS = r"""{{ }} {{- -}} . .Name .List $x := = | ( ) , range if else end with break continue upper printf index json eq
"a" "%d" `r` 'c' 1 -1 0x 1.5 nil true /* */ {{end}} {{else}} {{.}} \ é { } % :"""
PIECES = st.sampled_from([*WORDS.split(), "{{range .List}}", "{{if .On}}", " ", "\n"])


@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_text_is_a_template_or_a_template_error(text: str) -> None:
    with suppress(TemplateError):
        assert isinstance(Template(text).execute(DATA), str)


@given(st.text(max_size=40))
def test_text_without_braces_stays_as_it_is(text: str) -> None:
    if "{{" not in text:
        assert Template(text).execute(DATA) == text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_json_reads_back_as_the_value(value: Any) -> None:
    assert json.loads(to_json(value)) == value
    assert Template("{{json .}}").execute(value) == to_json(value)


@given(st.text())
def test_quoted_text_reads_back(text: str) -> None:
    assert unquote(quoted(text)) == text
    assert Template("{{" + quoted(text) + "}}").execute(None) == text


@given(st.text(alphabet="%-+# 0123456789.*dsvxXqtfgeTcUob!", max_size=12), st.lists(VALUES, max_size=3))
def test_printf_takes_any_format_and_any_values(pattern: str, values: list[Any]) -> None:
    assert isinstance(sprintf(pattern, values), str)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 30))
def test_numbers_print_as_c_prints_them(number: int, width: int) -> None:
    for flags in ("", "0", "-", "+", "+0"):
        pattern = f"%{flags}{width or ''}d"
        assert sprintf(pattern, [number]) == pattern % number
    if number >= 0:
        assert sprintf(f"%0{width or ''}x|%X", [number, number]) == f"%0{width or ''}x|%X" % (number, number)


@given(st.sampled_from(sorted(FUNCTIONS)), st.lists(VALUES, max_size=4))
def test_functions_take_or_refuse_any_arguments(name: str, values: list[Any]) -> None:
    arguments = " ".join(f"(index . {position})" for position in range(len(values)))
    template = Template(f"{{{{{name} {arguments}}}}}")
    with suppress(TemplateError):
        assert isinstance(template.execute(values), str)
