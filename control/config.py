"""The settings of linkspand: a TOML file, then flags, checked completely before anything is touched.

Every key has a default, so an empty or missing default file is a complete configuration. A key that does not exist is
an error that names the nearest one that does. Durations and sizes carry their unit in their name.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from control import decoding
from control.cluster_spec import DEFAULT_CLUSTER, ClusterSpec, ClusterTimes, InvalidOption, parse_spec
from datapath.latency import DEFAULT_SAMPLE_EVERY, MAX_SAMPLE_EVERY

DEFAULT_PATH = Path("/etc/linkspan/linkspan.toml")
UNIX_PATH_MAX_BYTES = 107
"""The longest path of a unix socket, without the final NUL; see unix(7)."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file and the key."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    pass


class DaemonSection(_Section, frozen=True, kw_only=True):
    """Where linkspand keeps what it has; see DESIGN, section 6. `plugin_socket` may be "off"."""

    state_dir: str = "/var/lib/linkspan"
    run_dir: str = "/run/linkspan"
    bpffs_dir: str = "/sys/fs/bpf/linkspan"
    plugin_socket: str = "/run/docker/plugins/linkspan.sock"
    group: str = "linkspan"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class ApiSection(_Section, frozen=True, kw_only=True):
    """Limits on clients of the API socket.

    `idle_timeout_seconds` bounds how long a client may take to send a request's head, and how long a connection may
    stay open between requests; `body_timeout_seconds` the time for a request's body; `stop_timeout_seconds` how long
    requests that are being worked on may delay a stop. `workers` is the number of requests that change something at
    once.
    """

    idle_timeout_seconds: float = 30.0
    body_timeout_seconds: float = 10.0
    stop_timeout_seconds: float = 5.0
    max_body_bytes: int = 1 << 20
    workers: int = 16


class ProberSection(_Section, frozen=True, kw_only=True):
    """Echo requests between endpoints of a network, and between nodes. Every `interval_seconds` each asks the next
    `targets`, unless it is busy: with `idle_only` those are left alone whose own TCP connections have told the round
    trip. What is not answered in `timeout_seconds` is lost.
    """

    enabled: bool = False
    interval_seconds: float = 10.0
    timeout_seconds: float = 1.0
    targets: int = 2
    idle_only: bool = True


class MetricsSection(_Section, frozen=True, kw_only=True):
    """`listen` is an address and a port, or "off"; `per_endpoint` whether endpoints have series, besides networks;
    `page` whether the web page is served there too.

    `tls_cert` and `tls_key` are absolute paths of PEM files, empty for plain HTTP; with `tls_client_ca` clients have to
    show a certificate by it. `users` is a file with users and their hashed passwords, empty for none. One packet
    in `forwarding_sample` has its forwarding timed and its TCP round trip read, 0 for none.
    """

    listen: str = "127.0.0.1:9478"
    per_endpoint: bool = True
    page: bool = True
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    users: str = ""
    forwarding_sample: int = DEFAULT_SAMPLE_EVERY
    prober: ProberSection = ProberSection()


class DatapathSection(_Section, frozen=True, kw_only=True):
    """`accel` is the default of the network option `linkspan.accel`; `attach` how programs are attached."""

    accel: bool = True
    attach: Literal["auto", "clsact", "tcx"] = "auto"
    masquerade: bool = True


class DefaultPool(_Section, frozen=True, kw_only=True):
    """Subnets of prefix length `size` are cut from `base` for networks that name no subnet."""

    base: str
    size: int

    @property
    def network(self) -> Network:
        return ipaddress.ip_network(self.base)


class IpamSection(_Section, frozen=True, kw_only=True):
    """No `default_pools` stands for the IPAM driver's own."""

    default_pools: tuple[DefaultPool, ...] = ()


class ClusterSection(_Section, frozen=True, kw_only=True):
    """What `linkspan cluster join` is given by its flags; without any of those keys the host joins by that command or
    not at all. The last two hold either way."""

    etcd: tuple[str, ...] = ()
    name: str = ""
    advertise: str = ""
    cluster: str = DEFAULT_CLUSTER
    cacert: str = ""
    cert: str = ""
    key: str = ""
    lease_seconds: int = 10
    key_lifetime_hours: float = 24.0


_JOINING: Final = ("etcd", "name", "advertise", "cluster", "cacert", "cert", "key")
_NOT_JOINING: Final = {key: getattr(ClusterSection(), key) for key in _JOINING}


class Config(_Section, frozen=True, kw_only=True):
    """All settings of one linkspand."""

    daemon: DaemonSection = DaemonSection()
    api: ApiSection = ApiSection()
    metrics: MetricsSection = MetricsSection()
    datapath: DatapathSection = DatapathSection()
    ipam: IpamSection = IpamSection()
    cluster: ClusterSection = ClusterSection()

    @property
    def state_dir(self) -> Path:
        return Path(self.daemon.state_dir)

    @property
    def run_dir(self) -> Path:
        return Path(self.daemon.run_dir)

    @property
    def bpffs_dir(self) -> Path:
        return Path(self.daemon.bpffs_dir)

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "linkspan.sock"

    @property
    def plugin_socket_path(self) -> Path | None:
        """Where dockerd finds linkspand, None where it is not to."""
        return None if self.daemon.plugin_socket == "off" else Path(self.daemon.plugin_socket)


def load(path: Path | None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Reads `path`, or the default file if there is one when it is None, and lays `overrides` {section: {key: value}}
    over it.

    Raises ConfigError: the file cannot be read, is not TOML, has an unknown key, or a value is of the wrong type or
    range.
    """
    document: dict[str, Any] = {}
    where = str(path or DEFAULT_PATH)
    if path is not None or DEFAULT_PATH.exists():
        try:
            document = tomllib.loads(Path(where).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {where}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} is not valid TOML: {error}") from error
    _refuse_unknown_keys(document, Config, where, "")
    config = _convert(document, where)
    if overrides:
        merged = msgspec.to_builtins(config)
        for section, values in overrides.items():
            merged[section].update(values)
        config = _convert(merged, "the command line")
    _check(config, where)
    return config


def _convert(document: dict[str, Any], where: str) -> Config:
    try:
        return decoding.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_unknown_keys(table: Any, type_: Any, where: str, path: str) -> None:
    """Raises ConfigError for the first key that `type_` does not have; types of values are left to msgspec."""
    if get_origin(type_) is tuple and isinstance(table, list):
        for index, item in enumerate(table):
            _refuse_unknown_keys(item, get_args(type_)[0], where, f"{path.rstrip('.')}[{index}].")
        return
    if not (isinstance(type_, type) and issubclass(type_, msgspec.Struct) and isinstance(table, dict)):
        return
    known = {field.encode_name: field.type for field in msgspec.structs.fields(type_)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ConfigError(f'{where}: there is no key "{path}{key}"; the nearest one is "{path}{near[0]}"')
        _refuse_unknown_keys(value, known[key], where, f"{path}{key}.")


def _check(config: Config, where: str) -> None:
    """What types alone cannot say: ranges, absolute paths, pools that are pools."""
    for key in ("state_dir", "run_dir", "bpffs_dir", "plugin_socket"):
        value = getattr(config.daemon, key)
        if not Path(value).is_absolute() and (key, value) != ("plugin_socket", "off"):
            raise ConfigError(f'{where}: daemon.{key.replace("_", "-")} must be an absolute path, not "{value}"')
    for socket_path in (str(config.socket_path), config.daemon.plugin_socket):
        if len(socket_path.encode()) > UNIX_PATH_MAX_BYTES:
            raise ConfigError(f"{socket_path} is too long for a unix socket: at most {UNIX_PATH_MAX_BYTES} bytes")
    for key, low in (
        ("idle_timeout_seconds", 0.1),
        ("body_timeout_seconds", 0.1),
        ("stop_timeout_seconds", 0.1),
        ("max_body_bytes", 1024),
        ("workers", 1),
    ):
        if not getattr(config.api, key) >= low:  # so that nan is refused
            raise ConfigError(f"{where}: api.{key.replace('_', '-')} must be at least {low}")
    for key, least, most in (("lease_seconds", 2, 3600), ("key_lifetime_hours", 0.1, 24 * 366)):
        if not least <= getattr(config.cluster, key) <= most:
            raise ConfigError(f"{where}: cluster.{key.replace('_', '-')} must be in {least}..{most}")
    _check_metrics(config.metrics, where)
    _check_prober(config.metrics.prober, where)
    for pool in config.ipam.default_pools:
        _check_pool(pool, where)
    try:
        cluster_of(config)
    except InvalidOption as error:
        raise ConfigError(f"{where}: cluster.{error.option}: {error.problem}") from error


def _check_prober(section: ProberSection, where: str) -> None:
    if section.interval_seconds < 1:
        raise ConfigError(
            f"{where}: metrics.prober.interval-seconds must be at least 1, not {section.interval_seconds:g}"
        )
    if not 0 < section.timeout_seconds <= section.interval_seconds:
        raise ConfigError(
            f"{where}: metrics.prober.timeout-seconds must be more than 0 and at most the interval of "
            f"{section.interval_seconds:g}, not {section.timeout_seconds:g}"
        )
    if not 1 <= section.targets <= 16:
        raise ConfigError(f"{where}: metrics.prober.targets must be from 1 to 16, not {section.targets}")


def _check_metrics(section: MetricsSection, where: str) -> None:
    """What the files hold is looked at when they are needed."""
    listen_address(section.listen, where)
    if not 0 <= section.forwarding_sample <= MAX_SAMPLE_EVERY:
        raise ConfigError(
            f"{where}: metrics.forwarding-sample must be 0, for none, or one packet in so many, to {MAX_SAMPLE_EVERY}"
        )
    for key in ("tls_cert", "tls_key", "tls_client_ca", "users"):
        path = getattr(section, key)
        if path and not Path(path).is_absolute():
            raise ConfigError(f'{where}: metrics.{key.replace("_", "-")} must be an absolute path, not "{path}"')
    for key, needed in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")):
        if getattr(section, key) and not getattr(section, needed):
            raise ConfigError(
                f"{where}: metrics.{key.replace('_', '-')} is of no use without metrics.{needed.replace('_', '-')}"
            )


def cluster_of(config: Config) -> ClusterSpec | None:
    """What the configuration says of a cluster to be in, None when that is nothing; a `load`ed one raises nothing.

    Certificates are not looked at: without them a host keeps its own networks.
    """
    given = {key: getattr(config.cluster, key) for key in _JOINING}
    return None if given == _NOT_JOINING else parse_spec(**given)


def cluster_times_of(config: Config) -> ClusterTimes:
    """What holds for this node in whichever cluster it is."""
    return ClusterTimes(config.cluster.lease_seconds, config.cluster.key_lifetime_hours * 3600)


def _check_pool(pool: DefaultPool, where: str) -> None:
    try:
        network = pool.network
    except ValueError as error:
        raise ConfigError(f'{where}: ipam.default-pools: base "{pool.base}" is not a subnet: {error}') from error
    longest = network.max_prefixlen - 2
    if not network.prefixlen <= pool.size <= longest:
        raise ConfigError(
            f"{where}: ipam.default-pools: size {pool.size} of {pool.base} is not in {network.prefixlen}..{longest}"
        )


def listen_address(text: str, where: str = "metrics.listen") -> tuple[str, int] | None:
    """Returns (IP address, port) of "127.0.0.1:9478" or "[::1]:9478", None for "off"; raises ConfigError."""
    if text == "off":
        return None
    host, separator, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        address, number = None, -1
    if not separator or address is None or not 0 <= number <= 65535:
        raise ConfigError(f'{where}: "{text}" is not an address to listen on: use IP:PORT, as 127.0.0.1:9478, or "off"')
    return str(address), number
