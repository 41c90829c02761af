"""Records that many threads are the first to read."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from control.decoding import convert, decode

FIRST = """
import sys, threading
import msgspec
from control.decoding import convert, decode
sys.setswitchinterval(1e-6)
for number in range(300):
    inner = msgspec.defstruct(f"Inner{{number}}", [("x", str), ("y", int)])
    outer = msgspec.defstruct(f"Outer{{number}}", [("name", str), ("inner", list[inner]), ("last", str)])
    together = threading.Barrier(4)
    def first():
        together.wait()
        {read}
    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
"""Four threads read a nested type at the same time, which nobody has read before; 300 times."""
VALUE = {"name": "n", "inner": [{"x": "a", "y": 1}], "last": "z"}
BODY = msgspec.json.encode(VALUE)


class Inner(msgspec.Struct):
    x: str
    y: int


class Outer(msgspec.Struct):
    name: str
    inner: list[Inner]
    last: str


@pytest.mark.parametrize("read", [f"decode({BODY!r}, outer)", f"convert({VALUE!r}, outer)"])
def test_threads_that_are_the_first_to_read_a_type_do_not_crash(read: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST.format(read=read)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_both_say_what_is_wrong() -> None:
    whole = Outer("n", [Inner("a", 1)], "z")
    assert decode(BODY, Outer) == convert(VALUE, Outer) == whole
    with pytest.raises(msgspec.ValidationError, match=r"\$\.inner\[0\]\.y"):
        decode(BODY.replace(b"1", b'"1"'), Outer)
    with pytest.raises(msgspec.ValidationError, match=r"\$\.last"):
        convert({**VALUE, "last": 7}, Outer)
    with pytest.raises(msgspec.DecodeError):
        decode(BODY[:-1], Outer)
    assert decode(b'"now"', str) == "now"
