"""Every kind of finding, over the whole table: raised somewhere, with a way to mend it, and provoked by a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from control.doctor.findings import KINDS, MEND, finding
from tests.hosts import ROOT

FOLDERS: Final = ("control/doctor", "control/drivers", "datapath")
OWN: Final = {
    "address-missing", "device-down", "device-elsewhere", "device-mac", "device-missing", "device-mtu", "fdb-missing",
    "firewall-extra", "firewall-missing", "map-extra", "map-missing", "map-wrong", "neighbour-missing", "pin-missing",
    "port-setting", "program-missing", "program-outdated", "route-missing",
}  # fmt: skip
"""What Linkspan puts right by itself: docs/doctor.md says so, and tests/netns has each mended."""
PASSED_ON: Final = {"address-extra", "name-taken", "sandbox-missing"}
"""Raised without a mend, which control/doctor/state.py gives them."""
CODE: Final = re.compile(r"[a-z]+(-[a-z]+)+|fallback")
MAKERS: Final = {"finding": 3, "Problem": 4, "Difference": None}
"""The mend's place among the arguments; a Difference has none, and becomes a Problem without."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that makes a finding of a code: the code, and the call."""
    for path in (path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
                for part in ast.walk(node.args[0]):  # a code, or a choice of two
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE.fullmatch(part.value):
                        yield part.value, node


def names_mend(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Name)
    last = MAKERS[call.func.id]
    by_name = {each.arg: each.value for each in call.keywords}
    given = by_name.get("mend", call.args[last] if last is not None and len(call.args) > last else None)
    return given is not None and not (isinstance(given, ast.Constant) and not given.value)


def test_every_code_is_raised_somewhere_and_no_other() -> None:
    assert {code for code, _ in calls()} == set(KINDS)


@pytest.mark.parametrize("code", KINDS)
def test_a_finding_names_its_mend_unless_linkspan_is_it(code: str) -> None:
    made = [call for each, call in calls() if each == code]
    if code in PASSED_ON:
        assert f'problem.code == "{code}"' in (ROOT / "control/doctor/state.py").read_text()
    else:
        assert {names_mend(call) for call in made} == {code not in OWN}
    assert finding(code, "here", "so").mend == MEND


@pytest.mark.parametrize("code", KINDS)
def test_a_test_provokes_it(code: str) -> None:
    suites = [path for path in Path(ROOT / "tests").rglob("test_*doctor*.py") if path.name != Path(__file__).name]
    assert [path for path in suites if f'"{code}"' in path.read_text()], code


def test_the_docs_say_which_are_linkspan_s() -> None:
    """Of the section that it mends, all but the ones that the section names."""
    section = re.split(r"^### ", (ROOT / "docs/doctor.md").read_text(), flags=re.MULTILINE)[1]
    codes = set(re.findall(r"^\| `([a-z-]+)` ", section, re.MULTILINE))
    assert codes - OWN == {"address-extra", "name-taken", "sandbox-missing", "peer-differs", "not-whole"}
    assert OWN - codes == {"program-missing", "program-outdated"}
