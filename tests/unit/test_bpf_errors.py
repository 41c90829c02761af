"""A refusal by the kernel names the command, the object and the remedy; nonsense never reaches the kernel."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from datapath import bpf


def refusing(monkeypatch, code):
    """Lets every command fail with `code`, as a kernel would."""
    names = ("obj_get", "obj_pin", "map_create", "prog_load", "link_create", "link_update", "link_detach")
    real = bpf.lib
    constants = {name: getattr(real, name) for name in dir(real) if name.isupper() or name.startswith("BPF")}
    refusals = {f"ls_bpf_{name}": lambda *_: -code for name in names}
    monkeypatch.setattr(bpf, "lib", SimpleNamespace(**constants, **refusals))


CASES = [
    (lambda: bpf.obj_get("/b/x"), errno.ENOENT, ["BPF_OBJ_GET", "/b/x", "nothing is pinned there"]),
    (lambda: bpf.obj_get("/b/x"), errno.EACCES, ["BPF_OBJ_GET", "/b/x", "not a pinned eBPF object"]),
    (lambda: bpf.obj_get("/b/x"), errno.EPERM, ["/b/x", "CAP_BPF and CAP_NET_ADMIN"]),
    (lambda: bpf.obj_get("/b/x"), errno.ENOSYS, ["/b/x", "built without eBPF"]),
    (lambda: bpf.obj_pin(3, "/b/x"), errno.EPERM, ["BPF_OBJ_PIN", "/b/x", "bpffs"]),
    (lambda: bpf.obj_pin(3, "/b/x"), errno.EEXIST, ["/b/x", "already"]),
    (lambda: bpf.map_create(bpf.MapType.HASH, 4, 4, 1, name="fdb"), errno.EPERM, ["BPF_MAP_CREATE", "hash map fdb"]),
    (lambda: bpf.prog_load(bytes(8), bpf.ProgType.XDP, name="p"), errno.EINVAL, ["BPF_PROG_LOAD", "xdp program p"]),
    (lambda: bpf.tcx_attach(3, 9), errno.EINVAL, ["BPF_LINK_CREATE", "tcx ingress of ifindex 9", "6.6"]),
    (lambda: bpf.tcx_attach(3, 9, egress=True), errno.ENODEV, ["tcx egress of ifindex 9", "No such device"]),
    (lambda: bpf.xdp_attach(3, 9), errno.EOPNOTSUPP, ["native XDP of ifindex 9"]),
    (lambda: bpf.link_update(5, 3), bpf.ENOTSUPP, ["BPF_LINK_UPDATE", "link descriptor 5", "not supported"]),
    (lambda: bpf.link_detach(5), errno.EBADF, ["BPF_LINK_DETACH", "link descriptor 5"]),
]


@pytest.mark.parametrize(("call", "code", "parts"), CASES)
def test_an_error_names_command_object_and_remedy(monkeypatch, call, code, parts):
    refusing(monkeypatch, code)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno and the text are checked below
        call()
    assert caught.value.errno == code
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: bpf.obj_get("/b/x\0y"), "NUL"),
        (lambda: bpf.obj_pin(3, b"/b/\0".decode()), "NUL"),
        (lambda: bpf.is_bpffs("\0"), "NUL"),
        (lambda: bpf.map_create(bpf.MapType.HASH, 4, 4, 1, name="sixteen_letters_"), "at most 15 bytes"),
        (lambda: bpf.prog_load(bytes(8), bpf.ProgType.XDP, name="ü" * 8), "at most 15 bytes"),
        (lambda: bpf.prog_load(bytes(12), bpf.ProgType.XDP), "8 bytes each"),
    ],
)
def test_arguments_that_c_would_cut_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("text", "count"), [("0\n", 1), ("0-1\n", 2), ("0-127\n", 128), ("0,2\n", 3), ("0-3,8-11\n", 12)]
)
def test_possible_cpus_are_counted_up_to_the_last(monkeypatch, tmp_path, text, count):
    (tmp_path / "possible").write_text(text)
    monkeypatch.setattr(bpf, "_POSSIBLE_CPUS", tmp_path / "possible")
    bpf.possible_cpus.cache_clear()
    try:
        assert bpf.possible_cpus() == count
    finally:
        bpf.possible_cpus.cache_clear()


@pytest.mark.parametrize("read", [bpf.map_info, bpf.prog_info, bpf.link_info, bpf.prog_id])
def test_a_descriptor_of_something_else_is_refused(tmp_path, read):
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match=r"is no eBPF (map|prog|link) but .*/file"):
        read(file.fileno())
