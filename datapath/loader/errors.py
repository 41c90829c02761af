"""Why the programs could not be loaded. Without them networks work, through the kernel's own path.

LoaderError
 |- Unavailable        the machine lacks something: bcc, UAPI headers, a bpffs, eBPF in the kernel
 |- PermissionDenied   the process lacks a capability
 |- CompileFailed      clang refuses a source
 |- VerifierRejected   the kernel refuses a program
 |- MapMismatch        a map is pinned with another shape than this version's
 |- TimedOut           the child did not end in time, or another loader holds the directory
 `- ChildBroken        the child ended without a reply that can be read
"""

from __future__ import annotations

from datapath.errors import DatapathError, Unsupported


class LoaderError(DatapathError):
    """The root of the loader's errors. `log_path` names the file with the child's whole output, if there is any."""

    log_path: str | None = None


class Unavailable(LoaderError, Unsupported):
    """The machine lacks what the loader needs; the text says how to get it."""


class PermissionDenied(LoaderError):
    """The process may not load programs."""


class CompileFailed(LoaderError):
    """A source does not compile; the text is clang's first error, the log has all."""

    def __init__(self, program: str, first_error: str, log_path: str) -> None:
        super().__init__(f"compile {program}: {first_error} (whole log in {log_path})")
        self.log_path = log_path


class VerifierRejected(LoaderError):
    """The kernel's verifier refuses a program; the text is its last word, the log has all."""

    def __init__(self, program: str, last_line: str, omitted: int, log_path: str) -> None:
        super().__init__(f"load {program}: {last_line} ({omitted} lines omitted, whole log in {log_path})")
        self.log_path = log_path


class MapMismatch(LoaderError):
    """A pinned map has another shape than the programs expect, so it would be read and written wrongly."""

    def __init__(self, name: str, want: str, have: str, path: str) -> None:
        super().__init__(f"map {name} at {path}: want {want}, have {have}; stop its users and remove the pin")
        self.name = name
        self.want = want
        self.have = have


class TimedOut(LoaderError):
    """Loading took longer than it may."""


class ChildBroken(LoaderError):
    """The child crashed, or printed no reply."""
