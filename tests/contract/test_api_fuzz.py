"""Random requests to every route: no 500, no hang, and no change from a request that is refused.

Bodies are made from the project's own schema (the structs that the API decodes), mostly of the right types, with values
that come near to what each field means; some have one place spoilt. The oracle of "no change" is the store, byte by
byte, with what the driver holds and the events that were told.
"""

from __future__ import annotations

import json
import string
import time
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from control.api.cluster import ClusterHandlers
from control.api.networks import NetworkHandlers
from control.api.sandboxes import SandboxHandlers
from control.api.schema import (
    PID_MAX,
    ClusterJoin,
    NetworkConnect,
    NetworkCreate,
    NetworkDisconnect,
    SandboxCreate,
    SandboxStarted,
)
from control.api.stats import StatsHandlers
from control.api.system import SystemHandlers
from control.api.trace import TraceHandlers
from control.events import Event
from tests.api_server import ApiServer, Reply
from tests.fake_cluster import FakeCluster
from tests.fakes import FakeDriver, fake_controller
from tests.memory_store import MemoryStore

EXAMPLES: Final = 100
"""A route and a run; the seed differs from run to run."""
ANSWER_WITHIN_S: Final = 5.0
REFUSALS: Final = {400, 403, 404, 409, 413, 503}
GOAL: Final = [{"Subnet": "10.77.0.0/16"}, {"Subnet": "fd00:77::/64"}]
GAINS: Final = {"create": 1, "connect": 1, "start": 1, "exit": -1, "disconnect": -1, "destroy": -1}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
words = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12) | st.text(max_size=200)
octets = st.integers(0, 300)
tens = st.integers(76, 79)
"""Few, so that an address often lies in the subnet beside it, or in that of the network `goal`."""
addresses = st.one_of(
    st.builds("10.{}.0.{}".format, tens, octets),
    st.builds("fd00:{}::{}".format, tens, octets),
    st.builds("{}.{}.{}.{}".format, octets, octets, octets, octets) | st.ip_addresses().map(str),
    st.text("0123456789abcdef:./%", max_size=24),
)
subnets = st.one_of(
    st.builds("10.{}.0.0/{}".format, tens, st.sampled_from([16, 24, 30])),
    st.builds("fd00:{}::/64".format, tens),
    st.builds("{}/{}".format, addresses, st.integers(-1, 130)) | addresses,
)
macs = st.binary(min_size=5, max_size=5).map(lambda mac: f"02:{mac.hex(':')}") | st.text(
    "0123456789abcdef:-", max_size=17
)
paths = st.sampled_from(["", "", "/dev/zero", "/proc/self/mem", "/etc/passwd", "/"]) | st.text(max_size=20).map(
    "/{}".format
)
networks = st.sampled_from(["goal"] * 5 + ["spare", "spare", "bridge", "host", "none", "settings", "nosuch"])
sandboxes = st.sampled_from(["idle", "idle", "web", "web", "nobody"])

# What strings mean, by the name of the field that holds them or their map.
MEANINGS: Final[dict[str, st.SearchStrategy[str]]] = {
    "Name": words,
    "Driver": st.sampled_from(["bridge", "bridge", "host", "null", "", "default", "overlay", "nosuch"]),
    "Scope": st.sampled_from(["", "", "local", "local", "global", "swarm", "x"]),
    "Subnet": subnets,
    "IPRange": subnets,
    "Gateway": addresses,
    "AuxiliaryAddresses": addresses,
    "IPv4Address": st.builds("10.77.0.{}".format, octets) | addresses,
    "IPv6Address": st.builds("fd00:77::{}".format, octets) | addresses,
    "LinkLocalIPs": st.builds("169.254.0.{}".format, octets) | st.builds("fe80::{}".format, octets) | addresses,
    "MacAddress": macs,
    "Aliases": words,
    "Links": st.builds("{}:{}".format, words, words) | words,
    "Etcd": st.builds("{}://{}:{}".format, st.sampled_from(["http", "http", "https"]), addresses | words, octets)
    | words,
    "Advertise": addresses,
    "Cluster": words,
    "CACert": paths,
    "Cert": paths,
    "Key": paths,
    "Network": networks,
    "Container": sandboxes,
}
NEEDED: Final = frozenset({"Name", "Container", "Network", "Etcd", "Advertise"})
RARE: Final = frozenset({"Ingress", "ConfigOnly", "ConfigFrom", "DriverOpts", "CACert", "Cert", "Key"})
"""Most values of these lead to the same refusal, before anything else is looked at."""
OPTION_NAMES: Final = st.sampled_from(["fake.option", "fake.option", "x"])


def like(type_: inspect.Type, name: str = "") -> st.SearchStrategy[Any]:
    """Values that a body may hold where the schema has `type_`."""
    match type_:
        case inspect.StructType(fields=fields):
            values = {field.encode_name: like(field.type, field.encode_name) for field in fields}
            needed = {name: value for name, value in values.items() if name in NEEDED}
            others = {name: value for name, value in values.items() if name not in NEEDED}
            return st.fixed_dictionaries(needed, optional=others | {"Unknown": anything})
        case inspect.UnionType(types=types):
            right = [like(each, name) for each in types if not isinstance(each, inspect.NoneType)]
            if name in NEEDED:
                return st.one_of(right)
            return st.integers(0, 7 if name in RARE else 1).flatmap(
                lambda chance: st.none() if chance else st.one_of(right)
            )
        case inspect.ListType(item_type=item):
            return st.lists(like(item, name), max_size=2)
        case inspect.DictType(value_type=value):
            keys = OPTION_NAMES if name == "Options" else st.text(max_size=10)
            return st.dictionaries(keys, like(value, name), max_size=2)
        case inspect.IntType():
            return st.integers(-(2**32), 2**32)
        case inspect.BoolType():
            return st.booleans()
        case inspect.StrType():
            return MEANINGS.get(name, st.text(max_size=10))
        case inspect.NoneType():
            return st.none()
    raise AssertionError(f"no idea of values for {type_}")


@st.composite
def bodies(draw: st.DrawFn, type_: type[msgspec.Struct]) -> Any:
    """A body for `type_`; in one of four something stands where something else belongs."""
    body = draw(like(inspect.type_info(type_)))
    if draw(st.integers(0, 3)) == 0:
        place = body
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
                place[key] = draw(anything)
                break
            place = place[key]
    return body


def is_harmless(body: Any) -> bool:
    """Not a request that would have a process of this machine taken for a sandbox's, and ended with it."""
    pid = body.get("Pid") if isinstance(body, dict) else None
    return not isinstance(pid, int | float) or isinstance(pid, bool) or not 0 < pid < PID_MAX


filters = st.dictionaries(
    st.sampled_from(
        ["name", "id", "label", "label!", "driver", "scope", "type", "dangling", "until", "event", "network", "image"]
    ),
    st.lists(st.text(max_size=12) | st.sampled_from(["goal", "1", "custom", "1h"]), max_size=2)
    | st.dictionaries(st.text(max_size=12), st.booleans(), max_size=2),
    max_size=2,
)
filter_texts = filters.map(json.dumps) | st.text(max_size=20)
flags = st.sampled_from(["", "1", "true", "0", "no", "x"])
moments = st.sampled_from(["0", "1", "1.5", "-1", "1h", "2020-01-01", "x", ""])
names = st.sampled_from(["", "x", "bridge/x", "10.0.0.1", "::1", "0123456789ab"])
protocols = st.sampled_from(["", "tcp", "udp", "icmp", "sctp"])
numbers = st.sampled_from(["", "0", "80", "65536", "-1", "x"])
nothing: st.SearchStrategy[dict[str, str]] = st.just({})


def query(**names: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional=dict(names))


# An event stream without an end would be one; that it ends with its client is tested elsewhere.
past = st.fixed_dictionaries(
    {"until": st.sampled_from(["0", "1", "1.5"])}, optional={"since": moments, "filters": filter_texts}
)

OPERATIONS: Final[dict[tuple[str, str], tuple[type[msgspec.Struct] | None, st.SearchStrategy[dict[str, str]]]]] = {
    ("GET", "/_ping"): (None, nothing),
    ("HEAD", "/_ping"): (None, nothing),
    ("GET", "/version"): (None, nothing),
    ("GET", "/info"): (None, nothing),
    ("GET", "/events"): (None, past),
    ("GET", "/networks"): (None, query(filters=filter_texts)),
    ("GET", "/networks/"): (None, query(filters=filter_texts)),
    ("POST", "/networks/create"): (NetworkCreate, nothing),
    ("POST", "/networks/prune"): (None, query(filters=filter_texts)),
    ("GET", "/networks/{ref}"): (None, query(verbose=flags, scope=st.sampled_from(["", "local", "swarm"]))),
    ("DELETE", "/networks/{ref}"): (None, nothing),
    ("POST", "/networks/{ref}/connect"): (NetworkConnect, nothing),
    ("POST", "/networks/{ref}/disconnect"): (NetworkDisconnect, nothing),
    ("GET", "/linkspan/status"): (None, nothing),
    ("GET", "/linkspan/trace"): (None, query(**{"from": names, "to": names, "proto": protocols, "port": numbers})),
    ("GET", "/linkspan/sandboxes"): (None, query(all=flags)),
    ("POST", "/linkspan/sandboxes"): (SandboxCreate, nothing),
    ("GET", "/linkspan/sandboxes/{ref}"): (None, nothing),
    ("DELETE", "/linkspan/sandboxes/{ref}"): (None, query(force=flags)),
    ("POST", "/linkspan/sandboxes/{ref}/started"): (SandboxStarted, nothing),
    ("GET", "/linkspan/cluster"): (None, nothing),
    ("GET", "/linkspan/cluster/nodes"): (None, nothing),
    ("POST", "/linkspan/cluster/join"): (ClusterJoin, nothing),
    ("POST", "/linkspan/cluster/leave"): (None, query(force=flags)),
    ("GET", "/linkspan/cluster/check"): (None, nothing),
    ("POST", "/linkspan/cluster/mend"): (None, nothing),
    ("GET", "/linkspan/stats"): (None, nothing),
}
VERSIONS: Final = st.sampled_from(["", "", "/v1.24", "/v1.32", "/v1.41", "/v1.56"] * 3 + ["/v1.57", "/v9.", "/v0"])
FUZZ: Final = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


class Fuzzed:
    """A server with two networks, a configuration and two sandboxes, and all that can change in it."""

    def __init__(self, directory: Path) -> None:
        self.store = MemoryStore()
        self.driver = FakeDriver()
        self.cluster = FakeCluster()
        controller = fake_controller(directory, self.driver, self.store, cluster=self.cluster)
        self.server = ApiServer(controller, directory / "api.sock")
        self.told: list[Event] = []

    def start(self) -> None:
        self.server.controller.subscribe(self.told.append)
        self.reset()

    def reset(self) -> None:
        """Makes it what it was at the start."""
        self.cluster.spec = None
        controller = self.server.controller
        for sandbox in controller.sandboxes():
            controller.remove_sandbox(sandbox.id, force=True)
        for network in sorted(controller.networks(), key=lambda network: network.config_only):
            if not network.predefined:
                controller.remove_network(network.id)
        networks: list[dict[str, Any]] = [
            {"Name": "goal", "EnableIPv6": True, "IPAM": {"Config": GOAL}},
            {"Name": "spare"},
            {"Name": "settings", "ConfigOnly": True},
        ]
        for body in networks:
            assert self.server.ask("POST", "/networks/create", body).status == 201
        for name, joined in (("web", "goal"), ("idle", "bridge")):
            body = {"Name": name, "Networks": [{"Network": joined}]}
            assert self.server.ask("POST", "/linkspan/sandboxes", body).status == 201
        self.told.clear()

    def state(self) -> Any:
        """What is stored, what IPAM says is in use, and what the kernel would have.

        Which address comes next is left out: one that was an endpoint's for a moment is not given out again at once.
        """
        usage = {
            network.id: self.server.controller.pool_usage(network) for network in self.server.controller.networks()
        }
        records = self.store.dump()
        pools = {id_: json.loads(body)["pool"] for id_, body in records.pop("pool").items()}
        return records, pools, usage, set(self.driver.networks), set(self.driver.endpoints), self.cluster.spec

    def gained(self) -> Counter[tuple[str, str]]:
        """Whose coming was told more often than its going: a sandbox that is refused has been on its first network."""
        balance: Counter[tuple[str, str]] = Counter()
        for event in self.told:
            balance[event.id, event.attributes.get("container", "")] += GAINS[event.action]
        return balance

    def ask(self, method: str, target: str, refusals: Container[int] = REFUSALS, **options: Any) -> Reply:
        """The answer, which came in time and is none that says that linkspan is broken."""
        before, begin = self.state(), time.monotonic()
        reply = self.server.ask(method, target, **options)
        assert time.monotonic() - begin < ANSWER_WITHIN_S
        if reply.status >= 400:
            assert reply.status in refusals, reply.body
            assert method == "HEAD" or reply.message
        if reply.status >= 400 or method in ("GET", "HEAD"):
            assert self.state() == before
            assert not any(self.gained().values())
        else:
            self.reset()
        return reply


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    made = Fuzzed(tmp_path_factory.mktemp("fuzz"))
    with made.server:
        made.start()
        yield made


def test_every_route_is_fuzzed(fuzzed: Fuzzed) -> None:
    """But for doctor's: they look at the host and its firewall, which here is the machine that tests run on."""
    context = fuzzed.server.context
    assert context is not None
    kinds = (
        SystemHandlers,
        NetworkHandlers,
        SandboxHandlers,
        ClusterHandlers,
        StatsHandlers,
        TraceHandlers,
    )
    handlers = [kind(context) for kind in kinds]
    routes = [(route.method, route.path) for each in handlers for route in each.routes()]
    assert sorted(routes) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda word: word.strip("/").replace("/", "-"))
def test_any_request_succeeds_or_is_refused_and_changes_nothing(fuzzed: Fuzzed, method: str, path: str) -> None:
    type_, queries = OPERATIONS[(method, path)]
    references = networks if path.startswith("/networks") else sandboxes

    @FUZZ
    @given(
        version=VERSIONS,
        ref=references | references | words,
        parameters=queries,
        body=bodies(type_) if type_ is not None else st.none(),
    )
    def fuzz(version: str, ref: str, parameters: dict[str, str], body: Any) -> None:
        assume(is_harmless(body))
        target = version + path.replace("{ref}", quote(ref.encode(errors="replace"), safe=""))
        if parameters:
            target += "?" + urlencode(parameters, errors="replace")
        raw = json.dumps(body).encode() if type_ is not None else None
        fuzzed.ask(method, target, raw=raw)

    fuzz()


@pytest.mark.parametrize("path", [path for (_, path), (type_, _) in OPERATIONS.items() if type_ is not None])
def test_bytes_that_are_no_body_are_refused(fuzzed: Fuzzed, path: str) -> None:
    @FUZZ
    @given(raw=st.binary(max_size=200) | anything.map(json.dumps).map(str.encode), cut=st.integers(0, 200))
    def fuzz(raw: bytes, cut: int) -> None:
        assume(b"{" not in raw[:1])
        reply = fuzzed.ask("POST", path.replace("{ref}", "goal" if "networks" in path else "web"), raw=raw[:cut])
        assert reply.status == 400

    fuzz()


@FUZZ
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    segments=st.lists(
        words | st.sampled_from(["networks", "v1.41", "linkspan", "sandboxes", "cluster", "..", "prune"]), max_size=4
    ),
)
def test_any_path_is_answered(fuzzed: Fuzzed, method: str, segments: list[str]) -> None:
    assume("events" not in segments)
    target = "/" + "/".join(quote(segment.encode(errors="replace"), safe="") for segment in segments)
    fuzzed.ask(method, target, refusals=REFUSALS | {501})
