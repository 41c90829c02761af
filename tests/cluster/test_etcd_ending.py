"""How the client's work ends: when it is cancelled it ends, also at the worst of moments, and close waits for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from control.cluster.etcd import Etcd
from control.cluster.etcd_errors import EtcdUnavailable
from control.cluster.etcd_members import within
from tests.etcd_server import free_port


def test_who_is_cancelled_just_as_the_work_is_done_ends_all_the_same() -> None:
    async def main() -> bool:
        waits: list[asyncio.Task[str]] = []

        async def work() -> str:
            await asyncio.sleep(0)
            waits[0].cancel()
            return "done"

        waits.append(asyncio.ensure_future(within(10, work())))
        await asyncio.wait(waits)
        return waits[0].cancelled()

    assert asyncio.run(main())


def test_work_is_given_so_much_time_and_then_ends() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("work")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await within(0.01, work())

    asyncio.run(main())
    assert ended == ["work"]


def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        asyncio.run(within(10, work()))


def test_close_ends_a_task_that_loses_a_cancellation() -> None:
    client = Etcd([f"http://127.0.0.1:{free_port()}"]).start()
    began, lost = threading.Event(), []

    async def stubborn() -> None:
        while True:
            try:
                began.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost.append(1)
                if len(lost) == 3:
                    raise

    client._spawn(stubborn())
    assert began.wait(10)
    client.close()
    assert len(lost) == 3


def test_a_client_that_has_hung_up_says_so() -> None:
    client = Etcd([f"http://127.0.0.1:{free_port()}"]).start()
    client.close()
    client.close()
    with pytest.raises(EtcdUnavailable, match="hung up"):
        client.get("/x")
