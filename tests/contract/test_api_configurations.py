"""Configuration networks: settings without a device, from which networks are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control.store.sqlite import SqliteStore
from tests.api_server import ApiServer
from tests.fakes import FakeDriver, fake_controller

IPAM = {
    "Options": {"x": "y"},
    "Config": [
        {
            "Subnet": "10.9.0.0/16",
            "IPRange": "10.9.1.0/24",
            "Gateway": "10.9.0.9",
            "AuxiliaryAddresses": {"printer": "10.9.0.7"},
        },
        {"Subnet": "fd00:9::/64"},
    ],
}


def settings(name: str = "settings", **body: Any) -> dict[str, Any]:
    return {"Name": name, "ConfigOnly": True, **body}


def made_from(configuration: str, name: str = "blue", **body: Any) -> dict[str, Any]:
    return {"Name": name, "ConfigFrom": {"Network": configuration}, **body}


def create(server: ApiServer, body: dict[str, Any]) -> str:
    reply = server.ask("POST", "/networks/create", body)
    assert reply.status == 201, reply.body
    return str(reply.json["Id"])


def test_a_configuration_is_shown_as_it_was_given_and_takes_nothing(server: ApiServer, driver: FakeDriver) -> None:
    options = {"fake.option": "1", "known.to.another.driver": "2"}
    body = settings(IPAM=IPAM, EnableIPv6=True, Options=options, Labels={"team": "a"}, Driver="macvlan")
    network_id = create(server, body)
    shown = server.ask("GET", "/networks/settings").json
    assert (shown["Driver"], shown["Scope"], shown["ConfigOnly"]) == ("null", "local", True)
    assert (shown["EnableIPv6"], shown["Options"], shown["Labels"]) == (True, options, {"team": "a"})
    assert shown["IPAM"] == {"Driver": "default", **IPAM}
    assert shown["Status"]["IPAM"]["Subnets"] == {}
    assert network_id not in driver.networks
    create(server, {"Name": "other", "IPAM": {"Config": [{"Subnet": "10.9.0.0/16"}]}})


def test_a_network_made_from_a_configuration_has_all_of_its_settings(server: ApiServer, driver: FakeDriver) -> None:
    create(
        server, settings(IPAM=IPAM, EnableIPv6=True, Options={"fake.option": "1"}, Labels={"team": "a"}, Driver="null")
    )
    network_id = create(server, made_from("settings", Internal=True, Attachable=True, IPAM={"Driver": "default"}))
    shown = server.ask("GET", "/networks/blue").json
    assert (shown["Driver"], shown["ConfigOnly"], shown["ConfigFrom"]) == ("bridge", False, {"Network": "settings"})
    assert (shown["Internal"], shown["Attachable"], shown["EnableIPv6"]) == (True, True, True)
    assert (shown["Options"], shown["Labels"]) == ({"fake.option": "1"}, {"team": "a"})
    assert shown["IPAM"]["Config"] == [IPAM["Config"][0], {"Subnet": "fd00:9::/64", "Gateway": "fd00:9::1"}]  # type: ignore[index]
    assert shown["IPAM"]["Options"] == {"x": "y"}
    assert network_id in driver.networks
    reply = server.ask("POST", "/networks/create", made_from("settings", "again"))
    assert (reply.status, "Pool overlaps with other one" in reply.message) == (403, True)


def test_a_configuration_stays_as_long_as_a_network_was_made_from_it(server: ApiServer) -> None:
    create(server, settings())
    create(server, made_from("settings"))
    reply = server.ask("DELETE", "/networks/settings")
    assert reply.status == 403
    assert reply.message == 'configuration network "settings" is in use: blue came from it'
    assert server.ask("DELETE", "/networks/blue").status == 204
    assert server.ask("DELETE", "/networks/settings").status == 204


def test_a_configuration_is_not_joined_and_not_pruned(server: ApiServer) -> None:
    create(server, settings())
    assert server.ask("POST", "/linkspan/sandboxes", {"Name": "web"}).status == 201
    for target, body in (
        ("/networks/settings/connect", {"Container": "web"}),
        ("/linkspan/sandboxes", {"Name": "db", "Networks": [{"Network": "settings"}]}),
    ):
        reply = server.ask("POST", target, body)
        assert reply.status == 403
        assert "cannot create endpoint on configuration-only network" in reply.message
    assert server.ask("POST", "/networks/prune").json == {"NetworksDeleted": []}
    assert server.ask("GET", "/networks/settings").status == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (settings(Internal=True), 403, "configuration network can only contain network specific fields"),
        (settings(Attachable=True), 403, "configuration network can only contain network specific fields"),
        (settings(Ingress=True), 403, "configuration network can only contain network specific fields"),
        (settings(Scope="local"), 403, "configuration network can only contain network specific fields"),
        (settings(ConfigFrom={"Network": "x"}), 403, "cannot depend on another configuration network"),
        (settings(IPAM={"Config": [{"Subnet": "10.0.0.1/8"}]}), 400, "it should be 10.0.0.0/8"),
        (settings("bridge"), 403, "operation is not permitted on predefined bridge network"),
        (settings("a b"), 400, "invalid network name"),
        (settings("blue"), 409, "network with name blue already exists"),
        (made_from("nosuch"), 404, 'configuration network "nosuch" does not exist'),
        (made_from("blue", "new"), 404, 'configuration network "blue" does not exist'),
        (made_from("good", Labels={"a": "b"}), 403, "user-specified configurations are not supported"),
        (made_from("good", EnableIPv6=True), 403, "user-specified configurations are not supported"),
        (made_from("good", EnableIPv4=False), 403, "user-specified configurations are not supported"),
        (made_from("good", IPAM=IPAM), 403, "user-specified configurations are not supported"),
        (made_from("good", IPAM={"Driver": "other"}), 403, "user-specified configurations are not supported"),
        (made_from("good", Options={"fake.option": "1"}), 403, "network driver options are not supported"),
        (made_from("bad", "new"), 400, "unknown option 'no.such.option'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_dockers_words(
    server: ApiServer, body: dict[str, Any], status: int, says: str
) -> None:
    create(server, settings("good"))
    create(server, settings("bad", Options={"no.such.option": "1"}))
    create(server, {"Name": "blue"})
    reply = server.ask("POST", "/networks/create", body)
    assert (reply.status, says in reply.message) == (status, True), reply.message
    assert len(server.ask("GET", "/networks").json) == 6


def test_both_are_there_again_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "first.sock") as server:
        create(server, settings(IPAM=IPAM, EnableIPv6=True))
        create(server, made_from("settings"))
        before = [server.ask("GET", f"/networks/{name}").json for name in ("settings", "blue")]
    store = SqliteStore(tmp_path / "state.db")
    with ApiServer(fake_controller(tmp_path, store=store), tmp_path / "second.sock") as server:
        assert [server.ask("GET", f"/networks/{name}").json for name in ("settings", "blue")] == before
        assert server.ask("DELETE", "/networks/settings").status == 403
