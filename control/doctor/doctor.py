"""`linkspan doctor`: everything that can be found out about this host's networks, and what Linkspan mends by itself.

Adding a check: a function that takes a View and yields findings, one line in CHECKS, its codes in KINDS and in
docs/doctor.md, and a test that provokes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from control.cluster_spec import Cluster
from control.deps import Deps
from control.doctor import firewall, host, mtu, offloads, programs, state
from control.doctor.findings import Finding, finding
from control.doctor.view import View
from control.drivers.base import Join
from control.errors import ControlError
from control.model import Endpoint, EndpointState, NetworkState
from control.records import Records
from datapath.attached import Origin, origins

LOG = logging.getLogger(__name__)

Check = Callable[[View], Iterable[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    state.devices,
    state.shared,
    state.parents,
    state.failures,
    state.cluster,
    programs.hooks,
    host.fallbacks,
    host.jit,
    host.memlock,
    mtu.uplink,
    mtu.discovery,
    mtu.black_holes,
    offloads.uplinks,
    offloads.endpoints,
    host.forwarding,
    host.reverse_path,
    host.bridge_netfilter,
    host.conntrack,
    host.neighbours,
    firewall.forwarded,
    firewall.vxlan,
    firewall.path_mtu,
)
_ROUNDS: Final = 3
"""What is mended may show what was hidden by it: a bridge that is back, that its ports are on none."""


class Doctor:
    """Compares and mends on request. Thread-safe; methods block.

    `status` is the controller's, `mend_subjects` applies networks and endpoints again, known by their ids.
    """

    def __init__(
        self,
        deps: Deps,
        records: Records,
        cluster: Cluster,
        *,
        join_of: Callable[[Endpoint], Join],
        status: Callable[[], Mapping[str, Any]],
        mend_subjects: Callable[[set[str]], None],
    ) -> None:
        self._deps = deps
        self._records = records
        self._cluster = cluster
        self._join_of = join_of
        self._status = status
        self._mend_subjects = mend_subjects

    def examine(self) -> list[Finding]:
        """What is wrong, gravest first. Changes nothing.

        What Linkspan would mend is looked at twice: a change that was going on meanwhile is no finding.
        """
        found = self._run()
        if any(each.is_own for each in found):
            again = set(self._run())
            found = [each for each in found if each in again]
        return found

    def mend(self) -> tuple[list[Finding], list[Finding]]:
        """(what was mended, what is left): puts right what is Linkspan's own, and nothing else of the host."""
        first = left = self.examine()
        for _ in range(_ROUNDS):
            own = [each for each in left if each.is_own]
            if not own:
                break
            LOG.warning("mending %d findings of doctor", len(own))
            self._mend_subjects({each.subject for each in own if each.subject})
            self._mend_shared()
            left = self.examine()
        return [each for each in first if each not in left], left

    def attached(self) -> list[dict[str, Any]]:
        """Every program at the hooks of the networks' devices, in the order in which packets meet them, and of others'
        where they come from, as far as that is known.

        Raises OSError.
        """
        found = programs.attached(self._view())
        known = origins({each.id for _, each, is_ours in found if each.id and not is_ours})
        return [
            {
                "device": ifname,
                "hook": each.hook,
                "by": each.how,
                "program": each.name,
                "id": each.id,
                "owner": "linkspan" if is_ours else "other",
                **_origin(known.get(each.id)),
            }
            for ifname, each, is_ours in found
        ]

    def _run(self) -> list[Finding]:
        view = self._view()
        found: list[Finding] = []
        for check in CHECKS:
            try:
                found += check(view)
            except (ControlError, OSError) as error:
                name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
                found.append(finding("check-failed", name, str(error), "see the reason"))
        order = ("error", "warning", "note")
        return sorted(found, key=lambda each: order.index(each.severity))

    def _view(self) -> View:
        with self._records.lock:
            networks = [network for network in self._records.networks() if not network.config_only]
            endpoints = self._records.endpoints()
            joined = [endpoint for endpoint in endpoints if endpoint.state is EndpointState.JOINED]
            joins = [self._join_of(endpoint) for endpoint in joined]
        status = self._status()
        return View(
            drivers=self._deps.drivers,
            networks=[network for network in networks if network.state is NetworkState.ACTIVE],
            joins=joins,
            all_networks=networks,
            all_endpoints=endpoints,
            cluster=self._cluster,
            fallbacks=status["fallbacks"],
            broken=status["broken"],
            reaches=self._deps.reaches,
        )

    def _mend_shared(self) -> None:
        with self._records.lock:
            networks: Sequence[Any] = [network for network in self._records.networks() if not network.config_only]
            endpoints = self._records.endpoints()
            for name, driver in self._deps.drivers.items():
                try:
                    driver.mend_shared(networks, endpoints)
                except (ControlError, OSError) as error:
                    LOG.error("what %s networks share could not be mended: %s", name, error)


def _origin(origin: Origin | None) -> dict[str, Any]:
    if origin is None:
        return {"held_by": [], "loaded_by": "", "loaded": ""}
    return {"held_by": origin.held_by, "loaded_by": origin.user, "loaded": f"{origin.loaded:%Y-%m-%dT%H:%M:%SZ}"}
