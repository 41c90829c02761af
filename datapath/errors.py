"""Errors of the datapath that are more than a failed system call; those are OSError with what was tried.

DatapathError
 `- Unsupported   the kernel or the machine lacks a feature; the reason says what and what to do
"""

from __future__ import annotations


class DatapathError(Exception):
    """The root of the datapath's own errors."""


class Unsupported(DatapathError):
    """A feature is needed that this machine lacks."""

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(f"{feature} is not available: {reason}")
        self.feature = feature
        self.reason = reason
