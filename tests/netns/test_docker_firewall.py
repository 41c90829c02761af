"""Linkspan's bridges beside what dockerd makes of iptables, in its nft and its legacy form, with packets."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path

import pytest

from datapath import docker_firewall, netns, nft
from datapath.docker_firewall import DockerFirewallError
from tests.isolated import isolated, run

pytestmark = pytest.mark.xdist_group("docker-firewall")

TOOLS = ("iptables", "ip6tables")
OPERATORS = {"iptables": "192.0.2.0/24", "ip6tables": "2001:db8:bad::/64"}


@pytest.fixture(params=["nft", "legacy"])
def iptables(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the commands mean one of their two forms, as an administrator does with update-alternatives."""
    for tool in TOOLS:
        for command in (tool, f"{tool}-restore"):
            form = shutil.which(f"xtables-{request.param}-multi")
            assert form, "iptables is not installed: run tools/setup"
            (tmp_path / command).symlink_to(form)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def dockerd(last: str = "-j RETURN") -> None:
    """What dockerd makes of the filter table, as far as others meet it, and a rule of the operator."""
    run("mount -t tmpfs run /run")  # a lock of this test's own
    for tool in TOOLS:
        run(f"{tool} -w -P FORWARD DROP; {tool} -N DOCKER-USER; {tool} -I FORWARD -j DOCKER-USER")
        run(f"{tool} -w -A DOCKER-USER -s {OPERATORS[tool]} -j DROP")
        if last:
            run(f"{tool} -w -A DOCKER-USER {last}")


def rules(tool: str = "iptables") -> list[str]:
    return run(f"{tool} -w -S").splitlines()


def all_rules() -> list[str]:
    return rules("iptables") + rules("ip6tables")


def of_chain(chain: str, tool: str = "iptables") -> list[str]:
    return [line.removeprefix(f"-A {chain} ") for line in rules(tool) if line.startswith(f"-A {chain} ")]


Reaches = Callable[..., bool]


def world() -> Reaches:
    """Sandboxes a and b on the bridge br-a, c on a shard of it, and a machine outside.

    Gives a function that says whether the first reaches all the others, by both families, or nobody by any.
    """
    run("mkdir -p /run/netns && sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    places = {"a": ("br-a", 2), "b": ("br-a", 3), "c": ("s01a", 4), "outside": (None, 2)}
    run("ip link add br-a type bridge && ip link add s01a type bridge && ip link add t01 type veth peer name u01")
    run("ip link set t01 master br-a up && ip link set u01 master s01a up && ip link set s01a up")
    run("ip link set br-a up && ip addr add 10.1.0.1/24 dev br-a && ip addr add fd01::1/64 dev br-a nodad")
    addresses = {}
    for name, (bridge, number) in places.items():
        prefix4, prefix6 = ("10.1.0.", "fd01::") if bridge else ("203.0.113.", "2001:db8:9::")
        run(f"ip netns add {name} && ip link add v-{name} type veth peer name eth0 netns {name}")
        run(f"ip link set v-{name} {f'master {bridge}' if bridge else ''} up")
        inside = f"ip -n {name}"
        run(f"{inside} addr add {prefix4}{number}/24 dev eth0 && {inside} addr add {prefix6}{number}/64 dev eth0 nodad")
        run(f"{inside} link set eth0 up && {inside} link set lo up")
        run(f"{inside} route add default via {prefix4}1 && {inside} -6 route add default via {prefix6}1")
        addresses[name] = (f"{prefix4}{number}", f"{prefix6}{number}")
    run("ip addr add 203.0.113.1/24 dev v-outside && ip addr add 2001:db8:9::1/64 dev v-outside nodad")
    nft.add(nft.Policy(["br-a", "s01a"], [ip_network("10.1.0.0/24"), ip_network("fd01::/64")]))

    def reaches(here: str, *others: str, wait_s: float = 5) -> bool:
        pings = [
            subprocess.Popen(f"ip netns exec {here} ping -nqc1 -W{wait_s} {address}".split(), stdout=subprocess.PIPE)
            for other in others
            for address in addresses[other]
        ]
        answers = {ping.communicate() and ping.returncode == 0 for ping in pings}
        assert len(answers) == 1, (here, others)
        return answers.pop()

    return reaches


@pytest.mark.usefixtures("iptables")
@isolated
def test_what_dockers_policy_cuts_off_passes_while_the_bridges_are_admitted() -> None:
    dockerd()
    before = all_rules()
    reaches = world()
    others = ("b", "c", "outside")
    assert not reaches("a", *others, wait_s=0.3)
    docker_firewall.admit(["br-a", "s01a"])
    assert reaches("a", *others)
    docker_firewall.dismiss(["br-a", "s01a"])
    assert not reaches("a", *others, wait_s=0.3)
    assert all_rules() == before


@pytest.mark.usefixtures("iptables")
@isolated
def test_the_operators_rules_that_come_earlier_stay_in_force_and_so_does_the_table_linkspan() -> None:
    dockerd()
    reaches = world()
    docker_firewall.admit(["br-a", "s01a"])
    assert not reaches("outside", "a", wait_s=0.3)  # it knows the way; the table linkspan lets nothing in unasked
    run("iptables -I DOCKER-USER -i br-a -j DROP && ip6tables -I DOCKER-USER -i br-a -j DROP")
    assert not reaches("a", "outside", wait_s=0.3)


@pytest.mark.usefixtures("iptables")
@pytest.mark.parametrize("last", ["-j RETURN", ""])
@isolated
def test_one_jump_stands_after_the_operators_rules_and_before_dockers_last(last: str) -> None:
    """Newer engines put no RETURN at the end."""
    dockerd(last)
    for _ in range(2):
        docker_firewall.admit(["br-a"])
        docker_firewall.admit(["br-b", "br-a"])
    for tool in TOOLS:
        operators = [f"-s {OPERATORS[tool]} -j DROP"]
        assert of_chain("DOCKER-USER", tool) == [*operators, "-j LINKSPAN", *([last] if last else [])]
        assert of_chain("LINKSPAN", tool) == [
            f"-{way} {bridge} -j ACCEPT" for bridge in ("br-a", "br-b") for way in "io"
        ]


@pytest.mark.usefixtures("iptables")
@isolated
def test_synchronizing_leaves_exactly_the_given_bridges_and_sets_right_what_somebody_changed() -> None:
    dockerd()
    docker_firewall.admit(["br-a", "br-b"])
    docker_firewall.synchronize(["br-b", "br-c", "br-b"])
    right = all_rules()
    assert {rule.split()[1] for rule in of_chain("LINKSPAN")} == {"br-b", "br-c"}
    for spoil in (
        "iptables -I LINKSPAN -j DROP",
        "ip6tables -F LINKSPAN",
        "iptables -D LINKSPAN -o br-c -j ACCEPT",
        "iptables -D DOCKER-USER -j LINKSPAN && iptables -A DOCKER-USER -j LINKSPAN",
        "iptables -I DOCKER-USER -j LINKSPAN && iptables -A DOCKER-USER -j LINKSPAN",
        "ip6tables -D DOCKER-USER -j LINKSPAN",
        "iptables -D DOCKER-USER -j LINKSPAN && iptables -F LINKSPAN && iptables -X LINKSPAN",
    ):
        run(spoil)
        assert all_rules() != right
        docker_firewall.synchronize(["br-b", "br-c"])
        assert all_rules() == right, spoil
    docker_firewall.synchronize([])
    assert not any("LINKSPAN" in rule for rule in all_rules())


@pytest.mark.usefixtures("iptables")
@isolated
def test_where_dockerd_never_ran_nothing_is_made_and_what_is_left_of_ours_is_removed() -> None:
    run("mount -t tmpfs run /run")
    before = all_rules()
    docker_firewall.admit(["br-a"])
    docker_firewall.synchronize(["br-a"])
    docker_firewall.dismiss(["br-a"])
    assert all_rules() == before
    run("iptables -N LINKSPAN && iptables -A LINKSPAN -i br-a -j ACCEPT")
    docker_firewall.admit(["br-a"])
    assert all_rules() == before


@pytest.mark.usefixtures("iptables")
@isolated
def test_networks_may_come_and_go_at_once() -> None:
    dockerd()
    before = all_rules()
    run("touch /run/here; mount --bind /proc/thread-self/ns/net /run/here")
    bridges = [f"br{number}" for number in range(12)]
    with ThreadPoolExecutor(4, initializer=lambda: netns.enter("/run/here")) as pool:
        list(pool.map(lambda bridge: docker_firewall.admit([bridge]), bridges))
        assert sorted(rule.split()[1] for rule in of_chain("LINKSPAN") if rule.startswith("-i")) == sorted(bridges)
        list(pool.map(lambda bridge: docker_firewall.dismiss([bridge]), bridges))
    assert all_rules() == before


@isolated
def test_a_table_that_iptables_cannot_read_is_no_error() -> None:
    run("nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; }'")
    run("nft add rule ip filter FORWARD tcp dport { 1, 2 } counter")
    docker_firewall.admit(["br-a"])
    docker_firewall.dismiss(["br-a"])


def test_without_iptables_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("subprocess.run", lambda *args, **options: pytest.fail(f"{args} was run"))
    docker_firewall.admit(["br-a"])
    docker_firewall.dismiss(["br-a"])
    docker_firewall.synchronize(["br-a"])


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts shell scripts in the place of iptables and iptables-restore; there is no ip6tables."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(listing: str, restoring: str) -> None:
        for name, script in (("iptables", listing), ("iptables-restore", restoring)):
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)

    return make


def test_a_list_that_cannot_be_had_now_is_told(fake: Callable[[str, str], None]) -> None:
    fake("echo 'Another app is currently holding the xtables lock.' >&2; exit 4", "exit 0")
    with pytest.raises(DockerFirewallError, match="iptables could not list its rules: Another app is currently"):
        docker_firewall.admit(["br-a"])


@pytest.mark.parametrize(
    ("script", "says"), [("echo '# Warning' >&2; echo 'line 2 failed' >&2", "line 2 failed"), ("", "no reason given")]
)
def test_a_change_that_is_refused_is_told(fake: Callable[[str, str], None], script: str, says: str) -> None:
    fake("echo '-N DOCKER-USER'", f"while read line; do :; done; {script}; exit 2".replace("; ;", ";"))
    with pytest.raises(DockerFirewallError, match=f"iptables-restore refused a change to LINKSPAN: {says}"):
        docker_firewall.admit(["br-a"])


@pytest.mark.parametrize("bridge", ["br+", 'b"r', "b'r", "b\\r", ""])
def test_a_name_that_means_something_else_to_iptables_is_refused(fake: Callable[[str, str], None], bridge: str) -> None:
    fake("echo '-N DOCKER-USER'", "exit 1")
    with pytest.raises(DockerFirewallError, match="iptables cannot tell the device"):
        docker_firewall.admit([bridge])
