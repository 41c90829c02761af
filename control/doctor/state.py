"""Whether the kernel, this host's files and its part of the cluster are what the records say."""

from __future__ import annotations

from collections.abc import Iterator

from control.doctor.findings import MEND, Finding, finding
from control.doctor.view import View
from control.drivers.base import Problem
from control.errors import ControlError


def devices(view: View) -> Iterator[Finding]:
    """Networks and endpoints, one by one."""
    for driver in view.drivers.values():
        for problem in driver.examine(*view.of(driver)):
            yield _finding(problem)


def shared(view: View) -> Iterator[Finding]:
    """Maps, firewall and pins, which all networks share."""
    for driver in view.drivers.values():
        for problem in driver.examine_shared(view.all_networks, view.all_endpoints):
            yield _finding(problem)


def parents(view: View) -> Iterator[Finding]:
    for network in view.networks:
        parent = view.drivers[network.driver].parent(network)
        if parent is not None and not parent.is_up:
            what = f"parent of network {network.name}: it is {parent.state}"
            yield finding("parent-down", parent.ifname, what, f"ip link set {parent.ifname} up, or bring it back")


def failures(view: View) -> Iterator[Finding]:
    """What linkspand has tried to mend, in vain."""
    for what, reason in view.broken.items():
        yield finding("not-whole", what, reason, "remove the reason, then restart linkspand")


def cluster(view: View) -> Iterator[Finding]:
    """What this node and the cluster know of each other."""
    if not any(network.is_global for network in view.networks):
        return
    try:
        found = view.cluster.check()
    except ControlError as error:
        yield finding("cluster-unknown", "cluster", str(error), "linkspan cluster info")
        return
    for each in found:
        yield finding("peer-differs", f"network {each.network}", each.what, each.mend)


def _finding(problem: Problem) -> Finding:
    if problem.code == "address-extra":
        address = problem.what.split()[1]
        return finding(problem.code, problem.where, problem.what, f"ip address del {address} dev {problem.where}")
    if problem.code == "name-taken":
        return finding(problem.code, problem.where, problem.what, f"rename or delete that device, then {MEND}")
    if problem.code == "sandbox-missing":
        mend = "restart linkspand, which makes the namespace again, and the processes in it"
        return finding(problem.code, problem.where, problem.what, mend)
    return finding(problem.code, problem.where, problem.what, problem.mend or MEND, subject=problem.subject)
