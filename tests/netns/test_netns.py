"""Pinned namespaces, made and removed in a mount namespace of the test's own. Oracles: nsenter, ip, /proc."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from datapath import netns
from tests.isolated import isolated, run

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
OWN = "/proc/thread-self/ns/net"


@pytest.fixture(autouse=True)
def _nothing_left():
    before = len(os.listdir("/proc/self/fd")), os.stat("/proc/self/ns/net").st_ino
    yield
    assert (len(os.listdir("/proc/self/fd")), os.stat("/proc/self/ns/net").st_ino) == before


def mounts(path):
    """The mountinfo lines of mounts at `path`, in the test's mount namespace."""
    with open("/proc/thread-self/mountinfo") as lines:
        return [line for line in lines if line.split()[4] == str(path)]


def without_capability(code, *arguments, capability="sys_admin"):
    """Runs Python code in a child that has every capability but one; its output."""
    command = ["setpriv", "--bounding-set", f"-{capability}", "--inh-caps", f"-{capability}"]
    command += [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


# create


@isolated
def test_a_created_namespace_has_lo_up_and_nothing_else(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    (lo,) = json.loads(run(f"nsenter --net={path} ip -json addr show"))
    assert lo["ifname"] == "lo"
    assert "UP" in lo["flags"]
    assert "127.0.0.1" in {address["local"] for address in lo["addr_info"]}


@isolated
def test_creating_leaves_the_caller_where_it_is(tmp_path):
    before = os.stat(OWN).st_ino
    netns.create(tmp_path / "sb")
    assert os.stat(OWN).st_ino == before
    assert netns.inode(tmp_path / "sb") != before


@isolated
def test_creating_twice_changes_nothing(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    inode = netns.inode(path)
    netns.create(path)
    assert netns.inode(path) == inode
    assert len(mounts(path)) == 1


@isolated
def test_a_file_left_by_a_reboot_is_mounted_upon(tmp_path):
    path = tmp_path / "sb"
    path.touch()
    assert not netns.is_netns(path)
    netns.create(path)
    assert netns.is_netns(path)


@isolated
def test_namespaces_created_at_once_are_distinct(tmp_path):
    paths = [tmp_path / f"sb{number}" for number in range(20)]
    threads = [Thread(target=netns.create, args=[path]) for path in paths]
    for thread in threads:
        thread.start()  # from here, so in the test's mount namespace
    for thread in threads:
        thread.join()
    assert len({netns.inode(path) for path in paths}) == 20


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("no/sb", FileNotFoundError, "create network namespace .*/no/sb: No such file"),
        ("x" * 300, OSError, "File name too long"),
        ("", NotADirectoryError, "create network namespace .*: mount: Not a directory"),
    ],
)
@isolated
def test_a_place_where_none_can_be_is_refused_by_name(tmp_path, name, error, text):
    with pytest.raises(error, match=text):
        netns.create(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@isolated
def test_a_path_that_c_would_cut_is_refused(tmp_path):
    for call in (netns.create, netns.delete, netns.is_netns, netns.enter, netns.prepare_directory):
        with pytest.raises(ValueError, match="NUL"):
            call(f"{tmp_path}/a\0b")


@isolated
def test_without_capability_the_error_names_it_and_no_file_is_left(tmp_path):
    code = """if True:
        import sys
        from datapath import netns
        try:
            netns.create(sys.argv[1])
        except PermissionError as error:
            print(error)
    """
    text = without_capability(code, tmp_path / "sb")
    assert f"create network namespace {tmp_path}/sb: unshare(CLONE_NEWNET)" in text
    assert "CAP_SYS_ADMIN" in text
    assert list(tmp_path.iterdir()) == []


# delete


@isolated
def test_deleting_removes_mount_and_file_and_is_harmless_when_repeated(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    netns.delete(path)
    assert not path.exists()
    assert mounts(path) == []
    netns.delete(path)


@isolated
def test_a_file_that_is_not_mounted_anymore_is_removed(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    run(f"umount {path}")
    netns.delete(path)
    assert not path.exists()


@isolated
def test_every_layer_of_mounts_is_removed(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    run(f"mount --bind {path} {path}")
    assert len(mounts(path)) == 2
    netns.delete(path)
    assert mounts(path) == []


@isolated
def test_deleting_a_directory_is_refused_by_name(tmp_path):
    (tmp_path / "dir").mkdir()
    with pytest.raises(OSError, match=f"delete network namespace {tmp_path}/dir: Is a directory"):
        netns.delete(tmp_path / "dir")
    assert (tmp_path / "dir").is_dir()


@isolated
def test_a_namespace_in_use_lives_on_until_its_process_ends(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    inode = netns.inode(path)
    with subprocess.Popen(["nsenter", f"--net={path}", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdin.write(b"ready\n")
        child.stdin.flush()
        child.stdout.readline()  # nsenter has become cat
        netns.delete(path)
        assert os.stat(f"/proc/{child.pid}/ns/net").st_ino == inode
        assert netns.pids_in(inode) == [child.pid]
        child.send_signal(signal.SIGKILL)
    assert netns.pids_in(inode) == []


# prepare_directory


@isolated
def test_a_prepared_directory_is_one_shared_mount_however_often(tmp_path):
    path = tmp_path / "run" / "netns"
    for _ in range(3):
        netns.prepare_directory(path)
    (mount,) = mounts(path)
    assert "shared:" in mount


@isolated
def test_deletion_reaches_mount_namespaces_made_meanwhile(tmp_path):
    netns.prepare_directory(tmp_path)
    path = tmp_path / "sb"
    netns.create(path)
    command = ["unshare", "--mount", "--propagation", "slave", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdin.write("ready\n")
        child.stdin.flush()
        child.stdout.readline()
        with open(f"/proc/{child.pid}/mountinfo") as lines:
            assert str(path) in lines.read()
        netns.delete(path)
        with open(f"/proc/{child.pid}/mountinfo") as lines:
            assert str(path) not in lines.read()
        child.stdin.close()


@isolated
def test_releasing_a_directory_undoes_preparing_it(tmp_path):
    path = tmp_path / "netns"
    netns.prepare_directory(path)
    netns.create(path / "sb")
    with pytest.raises(OSError, match=f"{path} still has network namespaces"):
        netns.release_directory(path)
    assert netns.is_netns(path / "sb")
    netns.delete(path / "sb")
    for _ in range(2):
        netns.release_directory(path)
        assert not path.exists()
        assert mounts(path) == []


@isolated
def test_preparing_where_a_file_is_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"{tmp_path}/file"):
        netns.prepare_directory(tmp_path / "file")


# is_netns, inode


@isolated
def test_only_a_network_namespace_is_one(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    assert netns.is_netns(OWN)
    for other in ("fifo", "file", "none", "."):
        assert not netns.is_netns(tmp_path / other)
    assert not netns.is_netns("/proc/self/ns/mnt")
    with pytest.raises(OSError, match="/proc/self/ns/mnt is no network namespace"):
        netns.inode("/proc/self/ns/mnt")
    with pytest.raises(FileNotFoundError):
        netns.inode(tmp_path / "none")


@isolated
def test_the_inode_is_what_a_process_inside_sees(tmp_path):
    netns.create(tmp_path / "sb")
    seen = run(f"nsenter --net={tmp_path}/sb readlink /proc/self/ns/net")
    assert seen.strip() == f"net:[{netns.inode(tmp_path / 'sb')}]"


# open_socket


@isolated
def test_a_socket_lives_in_the_namespace_it_was_opened_in(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    run(f"nsenter --net={path} ip link add inside type veth peer name other")
    with socket.socket(fileno=netns.open_socket(path, socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"inside")
        assert not os.get_inheritable(sock.fileno())
    with socket.socket(fileno=netns.open_socket(None, socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        with pytest.raises(OSError, match="No such device"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"inside")
        assert not os.get_inheritable(sock.fileno())


@isolated
def test_a_socket_that_cannot_be_is_refused_by_name(tmp_path):
    netns.create(tmp_path / "sb")
    with pytest.raises(OSError, match=f"open a socket in network namespace {tmp_path}/sb: socket: ") as caught:
        netns.open_socket(tmp_path / "sb", 12345, socket.SOCK_DGRAM)
    assert caught.value.errno == errno.EAFNOSUPPORT
    with pytest.raises(OSError, match="not a network namespace"):
        netns.open_socket("/proc/self/ns/mnt", socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none: open: "):
        netns.open_socket(tmp_path / "none", socket.AF_INET, socket.SOCK_DGRAM)


# enter, call


@isolated
def test_entering_takes_a_process_s_programs_along(tmp_path):
    path = tmp_path / "sb"
    netns.create(path)
    code = (
        "import os, sys; from datapath import netns; netns.enter(sys.argv[1]); os.execvp('ip', ['ip', '-br', 'link'])"
    )
    assert run(f'{sys.executable} -c "{code}" {path}').split()[0] == "lo"
    code = "import sys; from datapath import netns; netns.enter(sys.argv[1]); print(netns.inode('/proc/self/ns/net'))"
    assert int(run(f'{sys.executable} -c "{code}" {path}')) == netns.inode(path)


@isolated
def test_entering_something_else_is_refused():
    with pytest.raises(OSError, match="enter network namespace /proc/self/ns/mnt: not a network namespace"):
        netns.enter("/proc/self/ns/mnt")


@isolated
def test_a_call_runs_inside_and_comes_back(tmp_path):
    before = os.stat(OWN).st_ino
    netns.create(tmp_path / "sb")
    assert netns.call(tmp_path / "sb", lambda: os.stat(OWN).st_ino) == netns.inode(tmp_path / "sb")
    assert netns.call(tmp_path / "sb", lambda: run("ip -br link").split()[0]) == "lo"
    new = netns.call(None, lambda: os.stat(OWN).st_ino)
    assert new not in (before, netns.inode(tmp_path / "sb"))
    assert os.stat(OWN).st_ino == before


@isolated
def test_a_call_raises_what_the_function_raises(tmp_path):
    with pytest.raises(ZeroDivisionError):
        netns.call(None, lambda: 1 // 0)
    with pytest.raises(FileNotFoundError, match="enter network namespace"):
        netns.call(tmp_path / "none", lambda: None)
