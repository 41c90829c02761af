"""What `cluster join` takes and refuses: URLs, names, addresses, certificates; every refusal names its option."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control.cluster_spec import ClusterSpec, InvalidOption, not_joined, parse_spec, require_certificates
from control.errors import InvalidArgument
from control.model import from_json, to_json

NOBODY = 65534


def parsed(**fields: Any) -> ClusterSpec:
    return parse_spec(**{"etcd": ["http://10.0.0.7:2379"], "name": "a", "advertise": "10.0.0.1", **fields})


def refusal(**fields: Any) -> InvalidOption:
    with pytest.raises(InvalidOption) as refused:
        parsed(**fields)
    assert isinstance(refused.value, InvalidArgument)
    assert refused.value.http_status == 400
    assert str(refused.value) == f"--{refused.value.option}: {refused.value.problem}"
    return refused.value


def test_all_fields_are_taken_over() -> None:
    assert parse_spec(
        etcd=["https://etcd1:2379", "https://etcd2:2379"],
        name="node-1.example",
        advertise="fd00::1",
        cluster="east",
        cacert="/etc/ca.pem",
        cert="/etc/node.pem",
        key="/etc/node.key",
    ) == ClusterSpec(
        etcd=("https://etcd1:2379", "https://etcd2:2379"),
        name="node-1.example",
        advertise=IPv6Address("fd00::1"),
        cluster="east",
        cacert="/etc/ca.pem",
        cert="/etc/node.pem",
        key="/etc/node.key",
    )
    assert (parsed().cluster, parsed().advertise) == ("default", IPv4Address("10.0.0.1"))


def test_it_is_stored_and_read_back() -> None:
    spec = parsed(advertise="fd00::1")
    assert from_json(ClusterSpec, to_json(spec)) == spec


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://10.0.0.7", "http://10.0.0.7:2379"),
        ("http://10.0.0.7:1/", "http://10.0.0.7:1"),
        ("HTTPS://etcd.example.:65535", "https://etcd.example.:65535"),
        ("http://[fd00::7]", "http://[fd00::7]:2379"),
        ("http://[fd00::7]:02379", "http://[fd00::7]:2379"),
        ("http://localhost:2379", "http://localhost:2379"),
        ("http://3com:2379", "http://3com:2379"),
    ],
)
def test_a_url_gets_the_port_that_it_leaves_out(text: str, url: str) -> None:
    assert parsed(etcd=[text]).etcd == (url,)


def test_a_member_that_is_named_twice_counts_once() -> None:
    assert parsed(etcd=["http://a:2379", "http://b", "http://a"]).etcd == ("http://a:2379", "http://b:2379")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "give at least one URL"),
        ([""], "is no URL: write it as http://HOST:2379"),
        (["http://a:2379", ""], "is no URL"),
        (["etcd1:2379"], '"etcd1:2379" is no URL'),
        (["10.0.0.7"], "is no URL"),
        (["//a:2379"], "is no URL"),
        ([" http://a:2379"], "is no URL"),
        (["ftp://a:2379"], "has the scheme ftp: etcd speaks http and https"),
        (["unix:///run/etcd.sock"], "has the scheme unix"),
        (["http://"], "names no host"),
        (["http://:2379"], "names no host"),
        (["http://[]:2379"], "names no host"),
        (["http://[10.0.0.7]:2379"], "names no host"),
        (["http://[fd00::7:2379"], "names no host"),
        (["http://[fe80::7%eth0]:2379"], "names no host"),
        (["http://10.0.0:2379"], "names no host"),
        (["http://10.0.0.256:2379"], "names no host"),
        (["http://a_b:2379"], "names no host"),
        (["http://-a:2379"], "names no host"),
        (["http://a b:2379"], "names no host"),
        (["http://a:2379\n"], "has a port that is not in 1..65535"),
        ([f"http://{'a' * 64}:2379"], "names no host"),
        (["http://a:0"], "has a port that is not in 1..65535: that of etcd is 2379"),
        (["http://a:65536"], "has a port that is not in 1..65535"),
        (["http://a:"], "has a port that is not in 1..65535"),
        (["http://a:-1"], "has a port that is not in 1..65535"),
        (["http://a:http"], "has a port that is not in 1..65535"),
        (["http://a:２３"], "has a port that is not in 1..65535"),  # noqa: RUF001
        (["http://fd00::7:2379"], "has a port that is not in 1..65535"),
        (["http://a:2379/v3"], 'goes on after the host: leave out "/v3"'),
        (["http://a:2379?x=1"], 'leave out "?x=1"'),
        (["http://a:2379#x"], 'leave out "#x"'),
        (["http://a:2379,http://b:2379"], 'leave out "//b:2379"'),
        (["http://root:secret@a:2379"], "a URL holds a user"),
        (["http://a:2379", "https://b:2379"], "all members of one etcd have the same scheme"),
    ],
)
def test_a_wrong_url_is_refused(texts: list[str], says: str) -> None:
    error = refusal(etcd=texts)
    assert error.option == "etcd"
    assert says in error.problem
    assert "secret" not in error.problem


@given(st.text(max_size=40) | st.from_regex(r"https?://[\w.:\[\]@/-]{0,30}", fullmatch=True))
@example("http://[::ffff:10.0.0.7]:1")
def test_any_url_is_refused_or_one_that_others_read_alike(text: str) -> None:
    try:
        (url,) = parsed(etcd=[text]).etcd
    except InvalidOption:
        return
    read = urlsplit(url)
    assert (read.scheme in ("http", "https"), read.path, read.query, read.username) == (True, "", "", None)
    assert read.hostname
    assert read.port in range(1, 65536)
    assert parsed(etcd=[url]).etcd == (url,)


@pytest.mark.parametrize("option", ["name", "cluster"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the name is empty"),
        ("a/b", '"a/b" is no name: take one as host names are'),
        ("..", "is no name"),
        ("a..b", "is no name"),
        (".a", "is no name"),
        ("a.", "is no name"),
        ("-a", "is no name"),
        ("a-", "is no name"),
        ("a b", "is no name"),
        ("a\n", "is no name"),
        ("a_b", "is no name"),
        ("nöde", "is no name"),
        ("a" * 64, "is no name"),
        ("a." * 126 + "ab", "is no name"),
    ],
)
def test_a_name_that_no_host_could_have_is_refused(option: str, text: str, says: str) -> None:
    error = refusal(**{option: text})
    assert error.option == option
    assert says in error.problem


@pytest.mark.parametrize("text", ["a", "A", "7", "node-1", "node-1.example.org", "a" * 63, "a." * 126 + "a"])
def test_names_are_as_host_names_are(text: str) -> None:
    assert parsed(name=text, cluster=text).name == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no address"),
        ("node1", '"node1" is no address'),
        ("10.0.0", "is no address"),
        ("10.0.0.1/24", "is no address"),
        ("10.0.0.1:4789", "is no address"),
        ("[fd00::1]", "is no address"),
        ("010.0.0.1", "is no address"),
        ("0.0.0.0", "other nodes cannot reach this host by 0.0.0.0"),
        ("::", "cannot reach"),
        ("127.0.0.1", "cannot reach"),
        ("::1", "cannot reach"),
        ("224.0.0.1", "cannot reach"),
        ("ff02::1", "cannot reach"),
        ("255.255.255.255", "cannot reach"),
        ("fe80::1", "cannot reach"),
        ("fe80::1%eth0", "cannot reach"),
        ("::ffff:10.0.0.1", "cannot reach"),
    ],
)
def test_an_address_that_others_cannot_send_to_is_refused(text: str, says: str) -> None:
    error = refusal(advertise=text)
    assert error.option == "advertise"
    assert says in error.problem


@given(st.ip_addresses())
def test_an_address_is_refused_or_kept(address: Any) -> None:
    try:
        assert parsed(advertise=str(address)).advertise == address
    except InvalidOption:
        assert not address.is_global or address.is_multicast or getattr(address, "ipv4_mapped", None) is not None


@pytest.mark.parametrize(
    ("fields", "option", "says"),
    [
        ({"cert": "/c"}, "key", "cert is of no use without it: give both or none"),
        ({"key": "/k"}, "cert", "key is of no use without it"),
        ({"cacert": "ca.pem"}, "cacert", '"ca.pem" is no absolute path'),
        ({"cert": "./c", "key": "/k"}, "cert", "is no absolute path"),
        ({"cacert": "/ca\0"}, "cacert", "is no absolute path"),
    ],
)
def test_certificates_that_cannot_be_used_are_refused(fields: dict[str, str], option: str, says: str) -> None:
    error = refusal(etcd=["https://a"], **fields)
    assert error.option == option
    assert says in error.problem


@pytest.mark.parametrize("option", ["cacert", "cert", "key"])
def test_certificates_with_an_etcd_in_clear_are_refused(option: str) -> None:
    error = refusal(**{option: "/x"})
    assert (error.option, error.problem) == (
        option,
        "certificates are for URLs with https: write those, or leave this out",
    )


# -- the files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two self-signed certificates with their keys, the first key with a password as well, and what is none of it."""
    folder = tmp_path_factory.mktemp("pem")
    found = {
        name: folder / name for name in ("cert", "key", "other-cert", "other-key", "locked-key", "text", "folder", "no")
    }
    make = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=a",
    )
    for cert, key in (("cert", "key"), ("other-cert", "other-key")):
        subprocess.run([*make, "-out", found[cert], "-keyout", found[key]], capture_output=True, check=True)
    lock = ("openssl", "ec", "-aes128", "-passout", "pass:x", "-in", found["key"], "-out", found["locked-key"])
    subprocess.run(lock, capture_output=True, check=True)
    found["text"].write_text("-----BEGIN CERTIFICATE-----\nnot really\n-----END CERTIFICATE-----\n")
    found["folder"].mkdir()
    return found


def with_files(files: dict[str, Path], **names: str) -> ClusterSpec:
    return parsed(etcd=["https://a"], **{option: str(files[name]) for option, name in names.items()})


def test_files_that_are_what_they_are_said_to_be_are_taken(files: dict[str, Path]) -> None:
    require_certificates(with_files(files, cacert="other-cert", cert="cert", key="key"))
    require_certificates(with_files(files, cacert="cert"))
    require_certificates(with_files(files))
    require_certificates(parsed())


@pytest.mark.parametrize(
    ("names", "option", "says"),
    [
        ({"cacert": "no"}, "cacert", r"linkspand cannot read .*/no: No such file or directory"),
        ({"cacert": "folder"}, "cacert", r"/folder is not a file"),
        ({"cacert": "text"}, "cacert", r"/text holds no certificate: it has to be in PEM form"),
        ({"cacert": "key"}, "cacert", r"/key holds no certificate"),
        ({"cert": "no", "key": "key"}, "cert", r"cannot read .*/no: No such file"),
        ({"cert": "text", "key": "key"}, "cert", r"/text holds no certificate"),
        ({"cert": "cert", "key": "no"}, "key", r"cannot read .*/no: No such file"),
        ({"cert": "cert", "key": "folder"}, "key", r"/folder is not a file"),
        ({"cert": "cert", "key": "text"}, "key", r"/text holds no private key that can be used"),
        ({"cert": "cert", "key": "cert"}, "key", r"/cert holds no private key that can be used"),
        ({"cert": "cert", "key": "locked-key"}, "key", r"in PEM form, without a password"),
        ({"cert": "cert", "key": "other-key"}, "key", r"/other-key is not the key of the certificate in .*/cert"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_option(
    files: dict[str, Path], names: dict[str, str], option: str, says: str
) -> None:
    with pytest.raises(InvalidOption) as refused:
        require_certificates(with_files(files, **names))
    assert refused.value.option == option
    assert re.search(says, refused.value.problem)


def test_a_file_that_would_never_end_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidOption, match="pipe is not a file"):
        require_certificates(parsed(etcd=["https://a"], cacert=str(pipe)))


def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "ca.pem")
        path.touch(0o000)
        is_root = os.geteuid() == 0
        if is_root:  # who may read everything
            os.seteuid(NOBODY)
        try:
            with pytest.raises(InvalidOption, match=r"--cacert: linkspand cannot read .*/ca.pem: Permission denied"):
                require_certificates(parsed(etcd=["https://a"], cacert=str(path)))
        finally:
            if is_root:
                os.seteuid(0)


# -- without a cluster ---------------------------------------------------------------------------------------------


def test_what_needs_a_cluster_says_how_to_join_one() -> None:
    error = not_joined("blue")
    assert error.http_status == 403
    assert str(error) == (
        "This node is not in a cluster, which the overlay network blue needs: "
        "run `linkspan cluster join --etcd URL --advertise ADDR --name NODE` first"
    )
    assert str(not_joined()).startswith("This node is not in a cluster: run `linkspan cluster join --etcd URL")
    assert "\n" not in str(error)


def test_an_advertised_address_may_be_of_either_family() -> None:
    for text in ("10.0.0.1", "169.254.7.7", "fd00::1", "2001:db8::1"):
        assert parsed(advertise=text).advertise == ip_address(text)
