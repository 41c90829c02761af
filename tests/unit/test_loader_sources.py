"""The text that the compiler gets and the digest that stands for it; the header tree."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from datapath.loader import headers, sources
from datapath.loader.errors import Unavailable


@pytest.fixture
def tree(tmp_path):
    """A small source directory."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "prog.c").write_text('#include <uapi/linux/if_ether.h>\n#include "lib/a.h"\nint last;\n')
    (tmp_path / "lib" / "a.h").write_text('#include "b.h"\n# include  "../abi.h"\nint a;\n')
    (tmp_path / "lib" / "b.h").write_text('#include "abi.h"\nint b;\n')
    (tmp_path / "abi.h").write_text("int abi;\n")
    return tmp_path


def code(text):
    return [line for line in text.splitlines() if not line.startswith("#line")]


def test_each_header_stands_once_where_it_was_included_first(tree):
    assert code(sources.flatten(tree, "prog.c")) == [
        "#include <uapi/linux/if_ether.h>",
        "int abi;",
        "int b;",
        "int a;",
        "int last;",
    ]


def test_the_preprocessor_sees_the_lines_where_they_were_written(tree):
    (tree / "abi.h").write_text("int abi;\nABI __FILE__ __LINE__\n")
    (tree / "prog.c").write_text('#include "lib/a.h"\n\nPROG __FILE__ __LINE__\n')
    (tree / "lib" / "a.h").write_text('#include "abi.h"\nA __FILE__ __LINE__\n')
    if not shutil.which("cpp"):
        pytest.skip("no C preprocessor")
    text = subprocess.run(
        ["cpp", "-P"], input=sources.flatten(tree, "prog.c"), capture_output=True, text=True, check=True
    ).stdout
    assert text.splitlines() == ["int abi;", 'ABI "abi.h" 2', 'A "lib/a.h" 2', 'PROG "prog.c" 3']


def test_the_projects_own_programs_hold_no_project_include():
    for name, source in sources.PROGRAMS.items():
        text = sources.flatten(sources.DIRECTORY, source)
        context = "xdp_md *ctx" if name == "ls_switch_xdp" else "__sk_buff *skb"
        assert f"int {name}(struct {context})" in text
        assert '#include "' not in text


def test_a_missing_header_is_named_with_the_line_that_wants_it(tree):
    (tree / "lib" / "b.h").write_text('\n#include "gone.h"\n')
    with pytest.raises(FileNotFoundError, match=r'^lib/b\.h:2: "gone\.h" is neither beside it'):
        sources.flatten(tree, "prog.c")


def test_the_key_changes_with_every_source_and_with_nothing_else(tree):
    key = sources.key(tree)
    assert len(key) == 12
    (tree / "notes.txt").write_text("not a source")
    assert sources.key(tree) == key
    seen = {key}
    for path in (tree / "prog.c", tree / "abi.h", tree / "lib" / "b.h"):
        path.write_text(path.read_text() + "\n")
        seen.add(sources.key(tree))
    (tree / "lib" / "b.h").rename(tree / "lib" / "c.h")
    seen.add(sources.key(tree))
    (tree / "new.h").touch()
    seen.add(sources.key(tree))
    assert len(seen) == 6


@pytest.mark.parametrize("what", ["release", "machine", "abi"])
def test_the_key_changes_with_kernel_and_abi(tree, monkeypatch, what):
    key = sources.key(tree)
    if what == "abi":
        monkeypatch.setattr(sources.abi, "ABI_VERSION", 99)
    else:
        uname = {"release": sources.os.uname().release, "machine": sources.os.uname().machine, what: "other"}
        monkeypatch.setattr(sources.os, "uname", lambda: type("Uname", (), uname))
    assert sources.key(tree) != key


def test_the_header_tree_needs_uapi_headers_alone(tmp_path):
    headers.make_tree(tmp_path)
    root = tmp_path / "include"
    assert (root / "uapi" / "linux" / "if_ether.h").read_text().count("ETH_HLEN") == 1
    assert (root / "uapi" / "asm" / "byteorder.h").is_file()
    assert (root / "uapi" / "asm-generic" / "types.h").is_file()
    assert (root / "uapi" / "linux" / "bpf.h").read_text() == ""
    assert not any("linux-headers" in str(path.resolve()) for path in root.rglob("*.h"))


def test_missing_uapi_headers_say_what_to_install(tmp_path):
    with pytest.raises(Unavailable, match=r"UAPI headers .*asm is missing; install linux-libc-dev$"):
        headers.make_tree(tmp_path / "tree", include=tmp_path / "usr")
