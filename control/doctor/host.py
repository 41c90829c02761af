"""Settings and tables of the host that networks depend on. Linkspan changes none of them by itself."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Final

from control.doctor.findings import Finding, Severity, finding
from control.doctor.view import View
from control.drivers.overlay_options import DIRECT
from datapath import features

_NEARLY: Final = 0.8
_FULL: Final = 0.95
_MEMLOCK_BYTES: Final = 64 << 20
_ACCOUNTED_SINCE: Final = (5, 11)
_STRICT: Final = 1


def fallbacks(view: View) -> Iterator[Finding]:
    for feature, reason in view.fallbacks.items():
        yield finding("fallback", feature, reason, "see what the reason asks for, then restart linkspand")


def jit(view: View) -> Iterator[Finding]:
    if "ebpf" not in view.fallbacks and features.check("jit").answer is features.Answer.NO:
        what = "net.core.bpf_jit_enable is 0"
        yield finding("jit-off", "kernel", what, "sysctl -w net.core.bpf_jit_enable=1, then restart linkspand")


def memlock(view: View) -> Iterator[Finding]:
    """Source: kernel commit 3ac1f01b43b6 (memory of maps is accounted by cgroup since 5.11)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if features.kernel_version() < _ACCOUNTED_SINCE and 0 <= soft < _MEMLOCK_BYTES:
        what = f"linkspand may lock {soft} bytes"
        yield finding("memlock-low", "kernel", what, "set LimitMEMLOCK=infinity in linkspand.service")


def forwarding(view: View) -> Iterator[Finding]:
    outward = [network for network in view.networks if network.driver in ("bridge", "overlay") and not network.internal]
    outward = [network for network in outward if view.on(network)]
    switches = {
        "net.ipv4.ip_forward": any(network.enable_ipv4 for network in outward),
        "net.ipv6.conf.all.forwarding": any(network.enable_ipv6 for network in outward),
    }
    for name, is_needed in switches.items():
        if is_needed and view.number(name.replace(".", "/")) == 0:
            yield finding("forwarding-off", "host", f"{name} is 0", f"sysctl -w {name}=1")


def reverse_path(view: View) -> Iterator[Finding]:
    """Source: Documentation/networking/ip-sysctl.rst, rp_filter: the greater of "all" and the device's counts."""
    if not any(network.options.get(DIRECT, "off") != "off" and view.on(network) for network in view.networks):
        return
    for ifname in view.uplinks:
        values = {each: view.number(f"net/ipv4/conf/{each}/rp_filter") or 0 for each in ("all", ifname)}
        if max(values.values()) == _STRICT:
            mend = "; ".join(f"sysctl -w net/ipv4/conf/{each}/rp_filter=2" for each, is_ in values.items() if is_)
            yield finding("rp-filter-strict", ifname, "the reverse path of packets is checked strictly", mend)


def bridge_netfilter(view: View) -> Iterator[Finding]:
    for tool in ("iptables", "ip6tables"):
        if view.number(f"net/bridge/bridge-nf-call-{tool}"):
            mend = f"unless somebody else needs it: sysctl -w net.bridge.bridge-nf-call-{tool}=0"
            yield finding("bridge-netfilter", "host", f"net.bridge.bridge-nf-call-{tool} is on", mend)


def conntrack(view: View) -> Iterator[Finding]:
    has, room = view.number("net/netfilter/nf_conntrack_count"), view.number("net/netfilter/nf_conntrack_max")
    if has is not None and room and has >= _NEARLY * room:
        severity = Severity.ERROR if has >= _FULL * room else None
        mend = f"sysctl -w net.netfilter.nf_conntrack_max={2 * room}"
        yield finding("conntrack-full", "host", f"{has} of {room} connections are tracked", mend, severity=severity)


def neighbours(view: View) -> Iterator[Finding]:
    """Each endpoint has a gateway and talks to somebody. The limit is the machine's, and shown in its first namespace
    alone; elsewhere nothing can be told."""
    for family, count in (("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")):
        room = view.number(f"net/{family}/neigh/default/gc_thresh3")
        if not room:
            continue
        has = _cached(view, count)
        endpoints = sum(getattr(join.endpoint, family) is not None for join in view.joins)
        if has >= _NEARLY * room or endpoints > room:
            name = f"net.{family}.neigh.default.gc_thresh3"
            what = f"{name} is {room}, with {has} entries and {endpoints} endpoints"
            yield finding("neighbours-full", "host", what, f"sysctl -w {name}={4 * max(room, endpoints)}")


def _cached(view: View, name: str) -> int:
    """Entries of a neighbour table; the first column of each CPU's line has the same (net/core/neighbour.c)."""
    try:
        lines = (view.proc / "net/stat" / name).read_text().splitlines()
    except OSError:
        return 0
    return int(lines[1].split()[0], 16) if len(lines) > 1 else 0
