"""One lab per worker process; every test finds it in its first state."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.lab import Lab
from tests.bpf.overlay import OverlayLab
from tests.bpf.parents import ParentLab


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def lab(session_lab: Lab) -> Lab:
    session_lab.reset()
    return session_lab


@pytest.fixture(scope="module")
def module_parent(session_lab: Lab) -> Iterator[ParentLab]:
    parent = ParentLab(session_lab)
    yield parent
    parent.close()


@pytest.fixture
def parent(module_parent: ParentLab) -> ParentLab:
    module_parent.reset()
    return module_parent


@pytest.fixture
def overlay(lab: Lab) -> Iterator[OverlayLab]:
    made = OverlayLab(lab)
    yield made
    made.close()
