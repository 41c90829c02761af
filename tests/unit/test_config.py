"""The configuration: defaults, files, flags, and every way it can be wrong."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control import config as module
from control.cluster_spec import ClusterSpec, ClusterTimes
from control.config import Config, ConfigError, DefaultPool, cluster_of, cluster_times_of, listen_address, load
from control.daemon import main

CLUSTER = "[cluster]\nname = 'a'\nadvertise = '10.0.0.1'\n"
EXAMPLE = Path(__file__).parents[2] / "deploy" / "linkspan.toml"


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_PATH", tmp_path / "absent.toml")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "linkspan.toml"
    path.write_text(text)
    return path


def test_without_a_file_everything_has_its_default() -> None:
    assert load(None) == Config()
    assert str(load(None).socket_path) == "/run/linkspan/linkspan.sock"


def test_the_example_is_valid_and_says_the_defaults() -> None:
    assert load(EXAMPLE) == Config()


def test_every_key_stands_in_the_example() -> None:
    text = EXAMPLE.read_text()
    for section in msgspec.structs.fields(Config):
        assert f"[{section.encode_name}]" in text
        for field in msgspec.structs.fields(section.type):
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                assert f"[{section.encode_name}.{field.encode_name}]" in text
                for inner in msgspec.structs.fields(field.type):
                    assert f"\n{inner.encode_name} = " in text, inner.encode_name
            elif field.encode_name != "default-pools":
                assert f"\n{field.encode_name} = " in text, field.encode_name


def test_keys_are_read(tmp_path: Path) -> None:
    config = load(
        written(
            tmp_path,
            """
            [daemon]
            run-dir = "/run/other"
            log-level = "debug"
            [api]
            idle-timeout-seconds = 5
            [metrics]
            listen = "off"
            forwarding-sample = 0
            [datapath]
            accel = false
            attach = "clsact"
            [[ipam.default-pools]]
            base = "10.8.0.0/13"
            size = 24
            [[ipam.default-pools]]
            base = "fd00:8::/48"
            size = 64
            [cluster]
            etcd = ["https://etcd1", "https://etcd2:2380"]
            name = "a"
            advertise = "10.0.0.1"
            cluster = "east"
            cacert = "/etc/linkspan/ca.pem"
            cert = "/etc/linkspan/a.pem"
            key = "/etc/linkspan/a.key"
            """,
        )
    )
    assert config.run_dir == Path("/run/other")
    assert config.daemon.log_level == "debug"
    assert config.api.idle_timeout_seconds == 5.0
    assert (config.metrics.listen, config.metrics.forwarding_sample) == ("off", 0)
    assert (config.datapath.accel, config.datapath.attach) == (False, "clsact")
    assert config.ipam.default_pools == (
        DefaultPool(base="10.8.0.0/13", size=24),
        DefaultPool(base="fd00:8::/48", size=64),
    )
    assert cluster_of(config) == ClusterSpec(
        etcd=("https://etcd1:2379", "https://etcd2:2380"),
        name="a",
        advertise=IPv4Address("10.0.0.1"),
        cluster="east",
        cacert="/etc/linkspan/ca.pem",
        cert="/etc/linkspan/a.pem",
        key="/etc/linkspan/a.key",
    )


def test_without_keys_there_is_no_cluster_to_be_in(tmp_path: Path) -> None:
    assert cluster_of(load(None)) is None
    assert cluster_of(load(EXAMPLE)) is None
    assert cluster_of(load(written(tmp_path, '[cluster]\netcd = []\ncluster = "default"\n'))) is None


def test_how_long_leases_and_keys_last_is_no_reason_to_join(tmp_path: Path) -> None:
    config = load(written(tmp_path, "[cluster]\nlease-seconds = 30\nkey-lifetime-hours = 0.5\n"))
    assert cluster_of(config) is None
    assert cluster_times_of(config) == ClusterTimes(lease_s=30, key_lifetime_s=1800.0)
    assert cluster_times_of(load(EXAMPLE)) == ClusterTimes()


def test_a_cluster_needs_three_keys(tmp_path: Path) -> None:
    text = '[cluster]\netcd = ["http://10.0.0.7"]\nname = "a"\nadvertise = "10.0.0.1"\n'
    spec = cluster_of(load(written(tmp_path, text)))
    assert spec is not None
    assert (spec.etcd, spec.cluster, spec.cacert) == (("http://10.0.0.7:2379",), "default", "")


def test_flags_lie_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[daemon]\nrun-dir = "/run/a"\ngroup = "staff"\n')
    config = load(path, {"daemon": {"run-dir": "/run/b"}, "metrics": {"listen": "off"}})
    assert (config.daemon.run_dir, config.daemon.group, config.metrics.listen) == ("/run/b", "staff", "off")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("daemon", "is not valid TOML"),
        ('[daemon]\nrun-dir = "/a\n', "is not valid TOML"),
        ("[deamon]", 'there is no key "deamon"; the nearest one is "daemon"'),
        ('[daemon]\nrun_dir = "/a"', 'there is no key "daemon.run_dir"; the nearest one is "daemon.run-dir"'),
        ("[api]\nidle-timeout = 5", 'the nearest one is "api.idle-timeout-seconds"'),
        ('[[ipam.default-pools]]\nbase = "10.0.0.0/8"\nsize = 24\nsise = 1', 'no key "ipam.default-pools[0].sise"'),
        ('[[ipam.default-pools]]\nbase = "10.0.0.0/8"', "missing required field `size`"),
        ('[[ipam.default-pools]]\nbase = "10.0.0.1/8"\nsize = 24', 'base "10.0.0.1/8" is not a subnet'),
        ('[[ipam.default-pools]]\nbase = "ten"\nsize = 24', 'base "ten" is not a subnet'),
        ('[[ipam.default-pools]]\nbase = "10.0.0.0/16"\nsize = 8', "size 8 of 10.0.0.0/16 is not in 16..30"),
        ('[[ipam.default-pools]]\nbase = "10.0.0.0/16"\nsize = 31', "size 31 of 10.0.0.0/16 is not in 16..30"),
        ("daemon = 5", "Expected `object`, got `int` - at `$.daemon`"),
        ("[daemon]\nrun-dir = 5", "`$.daemon.run-dir`"),
        ('[daemon]\nrun-dir = "run"', 'daemon.run-dir must be an absolute path, not "run"'),
        ('[daemon]\nlog-level = "loud"', "`$.daemon.log-level`"),
        (f'[daemon]\nrun-dir = "/{"x" * 100}"', "is too long for a unix socket: at most 107 bytes"),
        ('[datapath]\nattach = "xdp"', "`$.datapath.attach`"),
        ('[datapath]\naccel = "yes"', "`$.datapath.accel`"),
        (
            "[metrics]\nforwarding-sample = -1",
            "metrics.forwarding-sample must be 0, for none, or one packet in so many",
        ),
        ("[api]\nworkers = 0", "api.workers must be at least 1"),
        ("[api]\nidle-timeout-seconds = -1", "api.idle-timeout-seconds must be at least 0.1"),
        ("[api]\nbody-timeout-seconds = nan", "api.body-timeout-seconds must be at least 0.1"),
        ("[api]\nmax-body-bytes = 10", "api.max-body-bytes must be at least 1024"),
        ('[metrics]\nlisten = "9478"', '"9478" is not an address to listen on'),
        ('[metrics]\nper-endpoint = "no"', "`$.metrics.per-endpoint`"),
        ("[metrics]\ntls-cert = '/c'", "metrics.tls-cert is of no use without metrics.tls-key"),
        ("[metrics]\ntls-key = '/k'", "metrics.tls-key is of no use without metrics.tls-cert"),
        ("[metrics]\ntls-client-ca = '/c'", "metrics.tls-client-ca is of no use without metrics.tls-cert"),
        ("[metrics]\ntls-cert = 'c'\ntls-key = '/k'", 'metrics.tls-cert must be an absolute path, not "c"'),
        ("[metrics]\nusers = 'users'", 'metrics.users must be an absolute path, not "users"'),
        ("[metrics]\nuser = '/u'", 'there is no key "metrics.user"; the nearest one is "metrics.users"'),
        ('[cluster]\netcd = "http://a"', "`$.cluster.etcd`"),
        ('[cluster]\nname = "a"', "cluster.etcd: give at least one URL"),
        ('[cluster]\netcd = ["http://a"]\nadvertise = "10.0.0.1"', "cluster.name: the name is empty"),
        ('[cluster]\netcd = ["http://a"]\nname = "a"', 'cluster.advertise: "" is no address'),
        (f"{CLUSTER}etcd = ['ftp://a']", 'cluster.etcd: "ftp://a" has the scheme ftp'),
        (f"{CLUSTER}etcd = ['http://a:0']", 'cluster.etcd: "http://a:0" has a port that is not in 1..65535'),
        (f"{CLUSTER}etcd = ['http://a']\ncluster = 'x/y'", 'cluster.cluster: "x/y" is no name'),
        (f"{CLUSTER}etcd = ['http://a']\ncacert = '/ca'", "cluster.cacert: certificates are for URLs with https"),
        (f"{CLUSTER}etcd = ['https://a']\ncert = '/c'", "cluster.key: cert is of no use without it"),
        (f"{CLUSTER}etcd = ['https://a']\ncacert = 'ca'", 'cluster.cacert: "ca" is no absolute path'),
        ("[cluster]\nlease-seconds = 1", "cluster.lease-seconds must be in 2..3600"),
        ("[cluster]\nlease-seconds = 2.5", "`$.cluster.lease-seconds`"),
        ("[cluster]\nkey-lifetime-hours = 0", "cluster.key-lifetime-hours must be in 0.1..8784"),
        ("[cluster]\nkey-lifetime-hours = nan", "cluster.key-lifetime-hours must be in 0.1..8784"),
        ("[cluster]\nca-cert = '/c'", 'there is no key "cluster.ca-cert"; the nearest one is "cluster.cacert"'),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert says in str(error.value)
    assert str(path) in str(error.value) or "unix socket" in says


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nosuch\.toml: No such file"):
        load(tmp_path / "nosuch.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "linkspan.toml"
    path.write_bytes(b"\xff\xfe[daemon]")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9478", ("127.0.0.1", 9478)),
        ("[::1]:0", ("::1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("off", None),
    ],
)
def test_listen_addresses_are_read(text: str, expected: Any) -> None:
    assert listen_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "localhost:80"]
)
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address to listen on: use IP:PORT"):
        listen_address(text)


def test_check_config_says_whether_it_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path, "[api]\nworkers = 3\n")
    assert main(["--config", str(good), "--check-config"]) == 0
    assert capsys.readouterr().out == f"{good}: the configuration is valid\n"
    bad = written(tmp_path, "[api]\nworker = 3\n")
    assert main(["--config", str(bad), "--check-config"]) == 2
    assert capsys.readouterr().err == (
        f'linkspand: {bad}: there is no key "api.worker"; the nearest one is "api.workers"\n'
    )
    assert main(["--metrics-listen", "nowhere", "--check-config"]) == 2
    assert "nowhere" in capsys.readouterr().err
