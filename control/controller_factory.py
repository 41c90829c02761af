"""Puts a controller together from the configuration: the one place that knows every implementation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from control.config import Config, cluster_of, cluster_times_of
from control.controller import NetworkController
from control.counted import Slots
from control.deps import Deps
from control.drivers import bridge, host, macvlan, none, overlay
from control.drivers.base import Driver, EndpointCounters
from control.drivers.bridge_names import DEFAULT_BRIDGE, NAME
from control.drivers.peering import Peering
from control.ipam.defaults import DefaultPool
from control.ipam.pools import PoolIpam
from control.observing import Observers
from control.plan import IDLE, Observer
from control.sandboxes import SandboxFiles
from control.store.sqlite import SqliteStore
from control.store.timed import TimedStore
from datapath import devices
from datapath.accel import Accelerator
from datapath.fast_peers import FastPeers
from datapath.host_ports import HostPorts
from datapath.programs import Programs
from datapath.uplink import Uplinks


def make_drivers(config: Config, peering: Peering, accelerator: Accelerator) -> Mapping[str, Driver]:
    """The registry: one line a driver, in the order in which they start."""
    defaults = {"default_accel": config.datapath.accel, "default_masquerade": config.datapath.masquerade}
    bridges = bridge.BridgeDriver(accelerator, **defaults)
    fast_peers = FastPeers(accelerator.programs, config.datapath.attach)
    drivers = (
        overlay.OverlayDriver(accelerator, bridges, peering, fast_peers, **defaults),
        bridges,
        macvlan.MacvlanDriver(
            SandboxFiles(config.run_dir).netns_path,
            Uplinks(accelerator.programs, config.datapath.attach),
            default_accel=config.datapath.accel,
        ),
        host.HostDriver(),
        none.NoneDriver(),
    )
    return {driver.name: driver for driver in drivers}


def make_deps(config: Config) -> Deps:
    """Opens the store and builds the rest; raises StoreError. The kernel is not touched."""
    peering, observers = Peering(), Observers()
    accelerator = Accelerator(
        config.bpffs_dir,
        config.run_dir,
        config.datapath.attach,
        sample_every=config.metrics.forwarding_sample,
    )
    programs = accelerator.programs
    return Deps(
        store=TimedStore(
            SqliteStore(config.state_dir / "linkspan.db"),
            lambda operation, seconds: observers.stored("sqlite", operation, seconds),
        ),
        ipam=PoolIpam([DefaultPool(pool.network, pool.size) for pool in config.ipam.default_pools]),
        drivers=make_drivers(config, peering, accelerator),
        files=SandboxFiles(config.run_dir),
        ports=HostPorts(),
        routed_networks=devices.routed_networks,
        predefined_options={"bridge": {NAME: DEFAULT_BRIDGE}},
        observers=observers,
        slots=Slots(
            partial(_slot_counters, programs), programs.clear_slot, programs.count_since, programs.slot_latencies
        ),
        map_fill=programs.map_fill,
        peering=peering,
        cluster=cluster_of(config),
        cluster_times=cluster_times_of(config),
        run_dir=config.run_dir,
        state_dir=config.state_dir,
    )


def _slot_counters(programs: Programs, slots: Collection[int]) -> dict[int, EndpointCounters]:
    return {
        slot: EndpointCounters(**vars(counters), drops=drops)
        for slot, (counters, drops) in programs.slot_counters(slots).items()
    }


def build_controller(config: Config, observe: Observer = IDLE) -> NetworkController:
    """A controller that has not started; `observe` sees every step before it is taken."""
    return NetworkController(replace(make_deps(config), observe=observe))
