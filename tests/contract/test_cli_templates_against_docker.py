"""`--format` against the real docker client: the same text, or the same complaint, for every template below."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_fake import FakeDaemon, fake_daemon
from tests.docker_client import Pair, docker_needed
from tests.samples import B9, B10, NET1

pytestmark = docker_needed

INSPECT = r"""
{{.Name}}
{{ .Name }}{{.ID}}|{{.Scope}}
{{.IPAM}}
{{.IPAM.Config}}
{{.IPAM.Driver}} {{.IPAM.Options}}
{{json .IPAM}}
{{json .}}
{{json .Name}} {{json .EnableIPv6}} {{json .Created}} {{json .Labels}} {{json nil}}
{{.Created}}
{{.ConfigFrom}} {{.ConfigFrom.Network}}
{{.Containers}}
{{.Options}} {{.Labels}}
{{.}}
{{$}}
{{.Labels.one}} {{.Labels.two}}|
{{index .Labels "one"}}|{{index .Labels "two"}}|
{{index .Options "b"}}|{{index .Options "com.docker.network.bridge.name"}}
{{(index .IPAM.Config 0).Subnet}}
{{(index .IPAM.Config 1).IPRange}} {{(index .IPAM.Config 1).AuxAddress.a}}
{{index (index .IPAM.Config 1).AuxAddress "a"}}
{{index .IPAM.Config 7}}
{{index .IPAM.Config -1}}
{{index .IPAM.Config "a"}}
{{index .Labels 1}}
{{index nil 1}}
{{index .Name 0}}
{{index .Name 99}}
{{index 1 1}}
{{index .IPAM.Config}}
{{index}}
{{range .IPAM.Config}}{{.Subnet}} {{end}}
{{range $i, $c := .IPAM.Config}}{{$i}}={{$c.Subnet}};{{end}}
{{range $c := .IPAM.Config}}{{$c.Gateway}}|{{end}}
{{range $k, $v := .Options}}{{$k}}:{{$v}} {{end}}
{{range .Options}}{{.}} {{end}}
{{range $k, $v := .Containers}}{{printf "%.3s" $k}}={{$v.IPv4Address}},{{end}}
{{range .Containers}}{{.Name}} {{.MacAddress}} {{end}}
{{range .Labels}}{{else}}none{{end}}
{{range .Peers}}x{{else}}no peers{{end}}
{{range 3}}{{.}}{{end}}
{{range $i := 3}}{{$i}}{{end}}
{{range "abc"}}{{.}}{{end}}
{{range .EnableIPv4}}{{.}}{{end}}
{{range nil}}x{{else}}y{{end}}
{{range .IPAM.Config}}{{if .IPRange}}{{break}}{{end}}{{.Subnet}}{{end}}
{{range .IPAM.Config}}{{if .Gateway}}{{continue}}{{end}}{{.Subnet}}{{end}}
{{break}}
{{range 2}}{{range 3}}{{if eq . 1}}{{break}}{{end}}{{.}}{{end}},{{end}}
{{if .Internal}}internal{{else}}external{{end}}
{{if .Internal}}a{{else if .EnableIPv4}}b{{else}}c{{end}}
{{if eq .Driver "bridge"}}B{{end}}
{{if and .EnableIPv4 (not .EnableIPv6)}}v4 only{{end}}
{{if or .EnableIPv6 .Internal}}x{{else}}y{{end}}
{{if .Labels}}labels{{end}}{{if .Peers}}peers{{end}}{{if .Name}}name{{end}}{{if .IPAM}}ipam{{end}}
{{with .IPAM}}{{.Driver}}{{end}}
{{with .Peers}}x{{else}}no{{end}}
{{with $x := .Name}}{{$x}}{{.}}{{end}}
{{with .Peers}}{{else with .Name}}{{.}}{{end}}
{{$x := .Name}}{{$x}} {{$x = "new"}}{{$x}}
{{$x := 1}}{{range 3}}{{$x = .}}{{end}}{{$x}}
{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}
{{range $i, $c := .IPAM.Config}}{{end}}{{$i}}
{{$y}}
{{$x = 1}}
{{and 1 0 2}} {{or 0 "" "x"}} {{and}} 
{{and true .Name}} {{or .Name (index .IPAM.Config 99)}}
{{not 0}} {{not "x"}} {{not .Labels}}
{{eq 1 1}} {{eq 1 2}} {{eq 1 2 1}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt "b" "a"}} {{ge 1.5 1.5}}
{{eq 1 1.0}}
{{eq 1 "1"}}
{{eq .Name .Driver}} {{eq .EnableIPv4 true}}
{{eq .Labels .Options}}
{{eq .Name}}
{{lt true false}}
{{lt 1 "a"}}
{{eq .IPAM.Config nil}}
{{len .Name}} {{len .IPAM.Config}} {{len .Labels}} {{len "日本"}}
{{len 3}}
{{len nil}}
{{slice .Name 1 3}} {{slice .Name 2}} {{slice .Name}}
{{slice .Name 3 1}}
{{slice .Name 99}}
{{slice .IPAM.Config 1}}
{{slice 1}}
{{upper .Name}} {{lower "ABC"}} {{title "hello big world"}}
{{title "don't x-ray a_b"}}
{{.Name | upper | printf "%s-%s" "x"}}
{{upper .EnableIPv4}}
{{upper 5}}
{{upper nil}}
{{upper}}
{{upper "a" "b"}}
{{join (split "a,b,c" ",") "-"}}
{{split "abc" ""}}
{{join .IPAM.Config ";"}}
{{join .Options ","}}
{{join nil ","}}
{{join "abc" ","}}
{{pad .Name 2 3}}|{{pad "" 2 3}}|
{{truncate .Name 2}} {{truncate .Name 20}}
{{pad .Name "a" 3}}
{{print 1 2}} {{print "a" "b"}} {{print 1 "a" 2}} {{print true false}} {{print nil}} {{print}}
{{println 1 "a" nil}}
{{printf "%d|%5d|%-5d|%05d|%+d|%x|%X|%o|%b|%c|%q|%U" 42 42 42 42 42 42 42 42 42 42 42 42}}
{{printf "%#x|%#o|%#b|%O|% d|%x" 42 42 42 42 42 -42}}
{{printf "%s|%10s|%-10s|%.2s|%q|%x|%X|%v" "hello" "hello" "hello" "hello" "he\"llo" "hi" "hi" "hi"}}
{{printf "%#q|%+q|%#v|% x" "a b" "a b" "a b" "abc"}}
{{printf "%t|%v|%5t|%q" true false true true}}
{{printf "%f|%.2f|%8.3f|%e|%g|%v|%G" 1.5 1.5 1.5 1.5 1.5 1.5 1.5}}
{{printf "%v %v %v %v" 1e21 1e20 1e-5 1.0}}
{{printf "%v %v %v" 100000000.0 123456789.125 0.0001}}
{{printf "%6.2f|%-8.1f|%08.3f|%+.1f" 3.14159 2.5 3.14159 1.0}}
{{printf "%d" "x"}} {{printf "%s" 5}} {{printf "%d"}} {{printf "%d" 1 2}}
{{printf "%!"}} {{printf "%"}} {{printf "%z" 1}}
{{printf "%d" nil}} {{printf "%v" nil}} {{printf "%s" nil}}
{{printf "%*d|%-*d|%.*f" 5 1 5 2 2 3.14159}}
{{printf "%*d" "x" 1}}
{{printf "%5%|%%"}}
{{printf "%v %+v" .IPAM .ConfigFrom}}
{{printf "%s %d" .IPAM.Config .IPAM.Config}}
{{printf "%v %s %q" .Labels .Labels .Labels}}
{{printf "%T %T %T %T" 1 "a" 1.5 true}}
{{printf "%v %s" .Created .Created}}
{{printf "%05s|%-05d|%05d|%+05d" "ab" 3 -3 3}}
{{printf "%q" "é\n\t\x01"}} {{printf "%q" "日本"}} {{printf "%c%c" 26085 0x1F600}}
{{printf "%5.1s|%.0s|" "abc" "abc"}}
{{printf "%99999999d" 1}}
{{printf 1}}
{{printf .Name}}
{{printf "%d items" (len .IPAM.Config)}}
{{"a\tb\u00e9\x41\101"}} {{`raw "x" \n`}} {{'a'}} {{'\n'}} {{0x1F}} {{1e3}} {{1_000}}
{{017}} {{0b11}} {{-5}} {{+5}} {{.5}}
{{"unterminated}}
{{'ab'}}
{{"bad \q escape"}}
{{`unterminated}}
{{1x}}
{{/* a comment */}}x
{{- /* a comment */ -}} x
{{/* unclosed
{{/* a */ b}}
  {{- .Name -}}  
{{.Name -}}   y {{- "z"}}
{{.Name}}{{- }}
{{3 -}} x
{{- 3}}
a {{-3}} b
{{if true}} x {{- else -}} y {{end}}
{{.Name}
{{.Name
{{
{{}}
}}
{{ }}
{{.Name}} }} {{"}}"}}
{{if}}x{{end}}
{{if .Name}}
{{end}}
{{else}}
{{if .Name}}{{else}}{{else}}{{end}}
{{range}}x{{end}}
{{if .Name}}{{end x}}
{{else if}}
{{foo}}
{{foo .Name}}
{{.Name foo}}
{{.Name.Foo}}
{{.Foo}}
{{.Foo.Bar}}
{{.IPAM.Foo}}
{{.Labels.one.two}}
{{.name}}
{{.Id}}
{{.Created.Foo}}
{{.EnableIPv4.X}}
{{(.Name).Foo}}
{{range .IPAM.Config}}{{.Foo}}{{end}}
{{.Name "x"}}
{{.Labels "x"}}
{{.Labels.one "x"}}
{{1 2}}
{{"a" "b"}}
{{. 1}}
{{nil}}
{{true}} {{false}}
{{true | not}}
{{.Name | 5}}
{{.Name | "x"}}
{{.Name | .}}
{{.Name | nil}}
{{.Name |}}
{{| .Name}}
{{.Name | upper |}}
{{.Name || upper}}
{{(.Name}}
{{.Name)}}
{{()}}
{{(upper .Name)}} {{(upper (lower .Name))}} {{((.Name))}}
{{(.IPAM).Driver}} {{(.IPAM.Config | len)}}
{{.Name # x}}
{{.Name, .ID}}
{{.Name := 1}}
{{$x, $y := 1}}
{{$x := 1 | upper}}
{{$x := }}
{{:}}
{{=}}
{{..}}
{{.Name.}}
{{.1}}
{{.Name.1}}
{{$.Name}} {{$.IPAM.Driver}}
{{range .IPAM.Config}}{{$.Name}}{{end}}
{{"a".Foo}}
{{upper.Foo}}
{{..Name}}
{{len .Containers | printf "%03d"}}
{{json (index .IPAM.Config 1)}} {{json .IPAM.Config}} {{json .Containers}}
{{json 1.5}} {{json 1e21}} {{json 100}} {{json true}} {{json "<&>"}}
{{.Options.b}} {{.Options.missing}}|
{{html "<a>"}}
plain text
\t tab \n newline
{{`日本語`}} {{"日本" | printf "%5s|%-5s|"}}
{{ if eq 1 1 }}{{ if eq 1 2 }}a{{ else }}{{ if true }}b{{ end }}{{ end }}{{ end }}
{{define "x"}}y{{end}}
{{.Containers.missing}}
{{.Containers.missing.Name}}|
{{index .Containers "missing"}}
{{if not (index .Labels "zz")}}none{{end}}
{{.Services}} {{.Peers}}
{{range $k, $v := .Services}}x{{else}}none{{end}}
{{$x = 1}}
{{with .IPAM}}{{$x = 1}}{{end}}
{{eq .IPAM.Config nil}} {{eq nil nil}} {{eq .Labels nil}} {{ne .Labels nil}}
{{eq 1 nil}} {{eq nil 1}}
{{eq .IPAM .IPAM}}
{{eq .ConfigFrom .ConfigFrom}}
{{lt 1 nil}}
{{(index .IPAM.Config 0).Foo}}
{{.Name | upper | len | upper}}
{{index .IPAM.Config 9 | len}}
{{$x := 1}}{{$x.Foo}}
{{range .IPAM.Config}}{{.Foo.Bar}}{{end}}
{{$y.Name}}
{{$x=1}}
{{.Name#}}
{{"a"#}}
{{1#}}
{{"a"b}}
{{"a""b"}}
{{len""}}
{{len(.Name)}}
{{.Name é}}
{{%}}
{{- 1 -}}
{{"a"-}}
{{.Name-}}
{{(1)2}}
{{true.x}}
{{nil.x}}
{{break x}}
{{range 2}}{{continue x}}{{end}}
{{if 1}}{{else 5}}{{end}}
{{if 1}}{{else with 1}}{{end}}
{{with 0}}{{else if 1}}x{{end}}
{{range 0}}{{else if 1}}x{{end}}{{end}}
{{'}}
{{"\u12"}}
{{1.2.3}}
{{ ( }}
{{)}}
{{printf "%s" .Name .ID}}
{{not}}
{{not 1 2}}
{{slice .IPAM.Config 0 1 2 3}}
{{slice .Name 0 1 2}}
{{or nil 1}} {{not nil}}
{{and nil}}
{{print nil 1}}
{{json}}
{{split .Name}}
{{truncate .Name -1}}
{{pad .Name -1 0}}
{{index .Labels nil}}
{{index .IPAM.Config nil}}
{{printf "%v" 123456.0}} {{printf "%v" 1234567.0}} {{1234567.5}} {{-0.00001}}
""".strip("\n").split("\n")
# Go's own texts for what nobody writes, what docker 29 does better, and named templates, html, js, urlquery and call.
DIFFERENT = {
    '{{html "<a>"}}',
    '{{define "x"}}y{{end}}',
    "{{len nil}}",
    '{{join .IPAM.Config ";"}}',
    '{{join .Options ","}}',
    '{{join "abc" ","}}',
    '{{printf "%99999999d" 1}}',
    "{{range nil}}x{{else}}y{{end}}",
}

LIST = r"""
{{.ID}}: {{.Driver}}
{{.Label "one"}}|{{.Label "two"}}|
{{.Label .Name}}
{{.Label 5}}
{{.Label "a" "b"}}
{{"one" | .Label}}
{{if eq .Internal "true"}}I{{end}}
{{len .ID}} {{slice .ID 0 4}}
{{json .Labels}} {{json .IPv6}}
{{with .Labels}}{{.}}{{else}}-{{end}}
{{.Name | printf "%-20s|"}}
{{$n := .Name}}{{upper $n}}
{{$.Name}}
{{.CreatedAt}}
table {{.Name}}\t{{.Driver}}
table {{.Name}}\t{{upper .Driver}}\t{{json .Labels}}
table {{.Name}}\t{{.Labels}}\t{{.ID}}\t
table {{if eq .Driver "host"}}{{.Name}}\t{{end}}{{.ID}}\t{{.Scope}}
table {{.Name}}\n{{.ID}}\t{{.Driver}}
table {{.Name | upper}}\t{{truncate .ID 4}}\t{{split .Labels ","}}\t{{join (split .Labels ",") ";"}}
table {{.Foo}}
table {{range $i, $x := split .Labels ","}}{{$x}}\t{{end}}
table{{.ID}}
table
""".strip("\n").split("\n")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDaemon]:
    with fake_daemon(Path(tmp_path_factory.mktemp("d"))) as daemon:
        daemon.on("GET", "/networks", [NET1, B9, B10])
        for network in (NET1, B10):
            daemon.on("GET", f"/networks/{network['Name']}", network)
        yield daemon


@pytest.fixture
def pair(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(daemon, capsys, monkeypatch)


@pytest.mark.parametrize("template", [template for template in INSPECT if template not in DIFFERENT])
def test_inspect_formats_as_docker(pair: Pair, template: str) -> None:
    pair.assert_same("network", "inspect", "--format", template, "net1")


@pytest.mark.parametrize(
    "template", [template for template in INSPECT if re.search("Labels|Options|Containers", template)]
)
def test_inspect_formats_absent_maps_as_docker(pair: Pair, template: str) -> None:
    if template not in DIFFERENT:
        pair.assert_same("network", "inspect", "--format", template, "b10")


@pytest.mark.parametrize("template", LIST)
def test_ls_formats_as_docker(pair: Pair, template: str) -> None:
    pair.assert_same("network", "ls", "--format", template)
