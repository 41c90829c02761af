"""Offloads of devices that are off where they are needed, or on where they hurt."""

from __future__ import annotations

from collections.abc import Iterator

from control.doctor.findings import Finding, finding
from control.doctor.view import View
from datapath import offloads
from datapath.offloads import Offloads


def uplinks(view: View) -> Iterator[Finding]:
    """Of the devices that the host forwards by, and that networks are on."""
    for ifname in sorted({*view.uplinks, *view.parents}):
        has, link = offloads.read(ifname), view.links.get(ifname)
        if has is not None and link is not None:
            yield from judge_uplink(ifname, link.kind, has)


def judge_uplink(ifname: str, kind: str, has: Offloads) -> Iterator[Finding]:
    """By its kind: a veth has no GRO to begin with, and gets merged packets from its other end as they are."""
    if has.lro:
        yield finding("lro-on", ifname, "large receive offload is on", f"ethtool -K {ifname} lro off")
    if not has.gro and kind != "veth":
        yield finding("gro-off", ifname, "generic receive offload is off", f"ethtool -K {ifname} gro on")


def endpoints(view: View) -> Iterator[Finding]:
    """Of both ends of veth pairs. Within a host nothing needs to be cut up or summed."""
    for join in view.joins:
        endpoint = join.endpoint
        if endpoint.host_ifname:
            yield from _of_veth(endpoint.host_ifname, None, "")
            if join.netns_path is not None:
                yield from _of_veth(endpoint.ifname, join.netns_path, f" in sandbox {join.holder}")


def _of_veth(ifname: str, netns_path: str | None, where: str) -> Iterator[Finding]:
    try:
        has = offloads.read(ifname, netns_path)
    except OSError:  # the namespace is gone, which others tell
        return
    if has is None:
        return
    enter = f"nsenter --net={netns_path} " if netns_path else ""
    if not has.tx_checksum:
        mend = f"{enter}ethtool -K {ifname} tx on"
        yield finding("checksum-off", f"{ifname}{where}", "transmit checksum offload is off", mend)
    # Without checksums or scatter-gather the kernel turns segmentation off by itself.
    if not (has.gso and has.tso) and has.tx_checksum:
        mend = f"{enter}ethtool -K {ifname} sg on gso on tso on"
        yield finding("gso-off", f"{ifname}{where}", "segmentation offload is off", mend)
