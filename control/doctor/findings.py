"""What doctor can find: each kind of finding once, by a code that never changes its meaning (docs/doctor.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

MEND: Final = "linkspan doctor --mend"


class Severity(StrEnum):
    """An error keeps packets from getting through as they should; a warning costs speed, or will be an error one day;
    a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Kind(NamedTuple):
    severity: Severity
    why: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

KINDS: Final[dict[str, Kind]] = {
    # what the records want, and the kernel does not have
    "device-missing": Kind(_E, "the endpoint or network has no way in or out"),
    "name-taken": Kind(_E, "the endpoint or network has no way in or out until the name is free"),
    "device-down": Kind(_E, "nothing passes a device that is down"),
    "device-elsewhere": Kind(_E, "packets do not get to the network's bridge"),
    "device-mac": Kind(_E, "packets are sent to a MAC that nobody has, and those from another are dropped as forged"),
    "device-mtu": Kind(_W, "packets of the size that one end takes are dropped by the other, without a word"),
    "port-setting": Kind(_E, "what is for one endpoint may get to others, or nowhere"),
    "address-missing": Kind(_E, "nobody answers at the address"),
    "address-extra": Kind(_W, "IPAM does not know of it and may give it to an endpoint"),
    "neighbour-missing": Kind(_W, "its MAC is asked for by broadcast, and learned entries have limited room"),
    "route-missing": Kind(_E, "the sandbox cannot reach anything outside of its networks"),
    "fdb-missing": Kind(_E, "the bridge does not flood what it does not know: slow-path packets are lost"),
    "sandbox-missing": Kind(_E, "the sandbox's processes and endpoints cannot be reached"),
    "map-missing": Kind(_E, "the programs leave such packets to the kernel's slow path, or drop them as forged"),
    "map-wrong": Kind(_E, "the programs deliver packets elsewhere, or drop them as forged"),
    "map-extra": Kind(_W, "the programs answer for, or send to, an endpoint that is gone"),
    "peer-differs": Kind(_E, "packets to that endpoint of another node may go elsewhere or nowhere"),
    "firewall-missing": Kind(_E, "what the networks' rules promise (isolation, masquerading, published ports) fails"),
    "firewall-extra": Kind(_W, "rules for networks or ports that are gone may hit those of others"),
    "pin-missing": Kind(_W, "a restart of linkspand begins with new maps, and counters from zero"),
    "not-whole": Kind(_E, "linkspand could not make it whole by itself"),
    # programs at hooks
    "program-missing": Kind(_E, "packets take the slow path, and senders are not checked"),
    "program-outdated": Kind(_E, "it may follow rules and maps that nobody keeps up to date"),
    "program-foreign": Kind(_W, "it sees the packets first, and what it drops or redirects does not get to Linkspan's"),
    "xdp-generic": Kind(_W, "the kernel copies each packet before the program runs, which costs what XDP is to save"),
    # fallbacks
    "fallback": Kind(_W, "something slower, or less, stands in for it"),
    "jit-off": Kind(_W, "programs are interpreted: each packet costs several times more"),
    "memlock-low": Kind(_W, "before kernel 5.11 maps count as locked memory: loading fails"),
    # devices of the host that networks depend on
    "parent-down": Kind(_E, "endpoints of the network reach nobody outside of this host"),
    "underlay-gone": Kind(_E, "other nodes send this node's packets to an address that nobody has"),
    # MTU
    "mtu-parent": Kind(_E, "the network's largest packets do not fit its parent and are dropped"),
    "mtu-underlay": Kind(_E, "with its outer headers a full packet does not fit the underlay and is dropped"),
    "mtu-path": Kind(_W, "full packets to that node are fragmented or dropped on the way"),
    "mtu-blackhole": Kind(_E, "somebody on the way drops full packets without saying so: connections hang"),
    "mtu-uplink": Kind(_W, "full packets that leave the host must be made smaller, which costs time at best"),
    "pmtu-off": Kind(_W, "the host does not look for the path's MTU: full packets are fragmented on the way"),
    "pmtu-blocked": Kind(_W, "nobody is told that a packet is too big: connections hang"),
    # offloads
    "lro-on": Kind(_W, "merged packets cannot be forwarded as they came: they are dropped, or TCP slows down"),
    "gro-off": Kind(_W, "each packet from the wire is worked on alone: a third of the throughput, and more CPU"),
    "gso-off": Kind(_W, "large packets are cut up before they are delivered, a stone's throw away"),
    "checksum-off": Kind(_W, "a sum is made over each packet that never leaves this host's memory"),
    # settings of the host
    "forwarding-off": Kind(
        _E, "the host does not route: nothing leaves the networks, and no published port is reached"
    ),
    "rp-filter-strict": Kind(_W, "packets that other nodes send without VXLAN may be dropped as from the wrong side"),
    "bridge-netfilter": Kind(_N, "each packet on the slow path of a bridge goes through iptables' rules as well"),
    "conntrack-full": Kind(_W, "new connections are dropped when the table is full"),
    "neighbours-full": Kind(
        _W, "sandboxes of this host share the room for learned neighbours: look-ups fail when it is full"
    ),
    "forward-drop": Kind(_W, "a packet must be let through by every table: what leaves networks may be dropped there"),
    "vxlan-port": Kind(_W, "packets from other nodes may be dropped before they get to Linkspan"),
    "cluster-unknown": Kind(_N, "what other nodes have cannot be compared"),
    "check-failed": Kind(_W, "what it looks for is not known"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with the way to put it right; see KINDS for `code`.

    `mend` is a command, or advice. Linkspan mends by itself what is its own, the steps of `subject` or what is shared.
    """

    code: str
    where: str
    what: str
    mend: str
    severity: Severity
    subject: str = ""

    @property
    def why(self) -> str:
        return KINDS[self.code].why

    @property
    def is_own(self) -> bool:
        return self.mend == MEND


def finding(
    code: str, where: str, what: str, mend: str = MEND, *, severity: Severity | None = None, subject: str = ""
) -> Finding:
    """Of the kind's severity, unless this one is graver or less so."""
    return Finding(code, where, what, mend, severity or KINDS[code].severity, subject)
