"""The monitor of the nftables table, on the kernel's own messages."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Network

import pytest

from datapath import nft
from datapath.nft_monitor import TableMonitor
from tests.isolated import isolated, run

POLICY = nft.Policy(bridges=["br0"], subnets=[IPv4Network("10.1.0.0/24")])


def says(monitor: TableMonitor, wait_s: float = 0.2) -> Iterator[bool]:
    """What the monitor says each time that it becomes readable, until it has not for so long."""
    while select.select([monitor], [], [], wait_s)[0]:
        yield monitor.was_deleted()


@pytest.mark.root
@pytest.mark.parametrize("command", ["nft flush ruleset", "nft delete table inet linkspan"])
@isolated
def test_a_deleted_table_is_noticed(command: str) -> None:
    nft.add(POLICY)
    with closing(TableMonitor()) as monitor:
        run(command)
        assert any(says(monitor))


@pytest.mark.root
@isolated
def test_everything_else_is_not_noticed() -> None:
    """Our own changes, and whatever becomes of other tables, those of our name in other families included."""
    nft.add(POLICY)
    with closing(TableMonitor()) as monitor:
        nft.synchronize([])
        nft.add(POLICY)
        nft.remove(POLICY)
        run("nft add table inet linkspan2; nft delete table inet linkspan2")
        run("nft add table ip linkspan; nft delete table ip linkspan")
        run("nft flush table inet linkspan")
        told = list(says(monitor))
        assert told
        assert not any(told)
        run("nft delete table inet linkspan")
        assert any(says(monitor))


@pytest.mark.root
@isolated
def test_more_messages_than_there_is_room_for_may_have_told_of_it() -> None:
    nft.add(POLICY)
    with closing(TableMonitor()) as monitor:
        ports = ", ".join(f"{port}" for port in range(1, 60000))
        run("nft add table inet other; nft add set inet other s '{ type inet_service; }'")
        run("nft -f -", input=f"add element inet other s {{ {ports} }}")
        assert any(says(monitor))
        assert not any(says(monitor))
