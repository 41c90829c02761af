"""Skips with a reason that is checked: a feature that this kernel must have is never skipped."""

from __future__ import annotations

from typing import Final

import pytest

from datapath.features import Answer, check, kernel_version

# What a kernel of any age may be built without; everything else is required from its minimum version on.
MAY_BE_LEFT_OUT: Final = frozenset({"btf", "netkit", "vlan", "wireguard"})


def require(feature: str) -> None:
    """Skips the test when the feature is absent, and fails it when that is unknown or cannot be."""
    found = check(feature)
    if found.answer is Answer.YES:
        return
    if found.answer is Answer.UNKNOWN:
        pytest.fail(f"cannot tell whether there is {feature}: {found.reason}")
    is_too_old = found.minimum is not None and kernel_version() < found.minimum
    if feature in MAY_BE_LEFT_OUT or is_too_old:
        pytest.skip(f"no {feature}: {found.reason}")
    pytest.fail(f"{feature} must be there: {found.reason}")
