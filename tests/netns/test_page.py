"""The web page in headless Chromium, before real traffic: what is there is drawn, what is gone goes, and nothing that
the page is told can run or leave."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.controller import NetworkController
from control.drivers.base import EndpointCounters
from control.model import Endpoint, EndpointId, EndpointState, Network, NetworkId, NetworkState, SandboxId, utcnow
from tests.browser import Browser, browser
from tests.fakes import FakeDriver, fake_controller
from tests.hosts import Host
from tests.netns.flows import sent_bits_per_second, udp_flow
from tests.netns.lab import Lab
from tests.page_server import page_server
from tests.traffic import socket_in

pytestmark = pytest.mark.xdist_group("page")

PAGE = "http://127.0.0.1:9478/"
HOSTILE = '<img src="http://192.0.2.1/x" onerror="document.title=1"><script>document.title=2</script>'
RATES = """
    const value = (digits, prefix) => digits * ({k: 1e3, M: 1e6, G: 1e9, T: 1e12}[prefix] ?? 1);
    function rates(key) {
        const texts = [...document.querySelectorAll(`[data-key="${key}"] > text`)].map((text) => text.textContent);
        const found = texts.join(" ").match(/\\u2191([0-9.]+)([kMGT]?) \\u2193([0-9.]+)([kMGT]?)/);
        return found ? [value(found[1], found[2]), value(found[3], found[4])] : [0, 0];
    }
"""
"""JavaScript: what a box says of bits per second, sent and delivered."""


@pytest.fixture(scope="module")
def chromium(machine: Host) -> Iterator[Browser]:
    with browser(f"/proc/{machine.pid}/ns/net") as running:
        yield running


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    made = Lab(machine, "blue")
    assert made.a.pings(made.b.ip4)
    return made


@pytest.fixture
def page(chromium: Browser, lab: Lab) -> Iterator[Browser]:
    """The page of the host with linkspan on it; at the end nothing was complained of, and nothing left the listener."""
    chromium.open(PAGE)
    yield chromium
    assert chromium.complaints() == []
    requests = chromium.requests()
    assert f"{PAGE}stats" in requests
    assert [url for url in requests if not url.startswith(PAGE)] == []


def drawn(page: Browser, key: str) -> bool:
    return bool(page.run("return document.querySelectorAll(`[data-key='${arguments[0]}']`).length", key))


def test_hosts_networks_endpoints_and_wires_are_drawn(page: Browser, lab: Lab) -> None:
    page.wait("return document.querySelector('.box.endpoint')", "endpoints")
    name = lab.host.run("uname", "-n").stdout.strip()
    assert page.texts(".box.node > title") == [name]
    assert set(page.texts(".box.network > title")) == {"blue", "bridge", "host", "none"}
    assert set(page.texts(".box.endpoint > title")) == {"blue-a", "blue-b"}
    for station in (lab.a, lab.b):
        assert drawn(page, f"network:{lab.id} endpoint:{station.endpoint_id}")
    assert drawn(page, f"node:{name} network:{lab.id}")


def test_rates_are_those_of_the_devices(page: Browser, lab: Lab) -> None:
    a, b, network = f"endpoint:{lab.a.endpoint_id}", f"endpoint:{lab.b.endpoint_id}", f"network:{lab.id}"
    with udp_flow(lab.a, lab.b):
        page.wait(f"{RATES} return rates(arguments[0])[0] > 1e6", "traffic to show", a)
        expected = sent_bits_per_second(lab.a)
        page.wait(
            f"""{RATES}
            const [a, b, network, expected] = arguments;
            const near = (one, other, share) => Math.abs(one / other - 1) < share;
            const [sent] = rates(a);
            const wire = document.querySelector(`[data-key="${{network}} ${{a}}"]`);
            return near(sent, expected, 0.3) && near(rates(b)[1], sent, 0.05) && wire.classList.contains("fast")
                && near(rates(network)[0], sent, 0.05) && near(rates(network)[1], sent, 0.05);""",
            f"a to send {expected:.0f} b/s to b over their network, by programs",
            *(a, b, network, expected),
        )


def test_an_endpoint_that_leaves_goes_with_its_wire(page: Browser, lab: Lab) -> None:
    station = lab.join("gone")
    present = "return document.querySelectorAll(`[data-key$='endpoint:${arguments[0]}']`).length"
    page.wait(f"{present} === 2", "the endpoint and its wire", station.endpoint_id)
    lab.host.api("DELETE", "/linkspan/sandboxes/blue-gone?force=1")
    page.wait(f"{present} === 0", "both to go", station.endpoint_id)


def test_the_keyboard_reaches_everything_and_shows_details(page: Browser, lab: Lab) -> None:
    page.wait("return document.querySelector('.box.endpoint')", "endpoints")
    page.run("document.querySelector('.box[tabindex=\"0\"]').focus()")
    reached = []
    for _ in range(7):
        reached.append(page.run("return document.activeElement.querySelector('title').textContent"))
        page.press("\ue014")  # to the right
    assert {"blue", "blue-a", "blue-b", "none"} < set(reached)
    page.press("\ue011\ue014\ue014\ue007")  # home, twice to the right, enter
    page.wait("return !document.getElementById('details').hidden", "details")
    assert page.texts("#details h2") == ["blue-a"]
    assert {lab.a.ip4, lab.a.mac, "blue"} <= set(page.texts("#details td"))
    page.press("\ue00c")
    page.wait("return document.getElementById('details').hidden", "details to go")


def test_a_filter_leaves_what_fits(page: Browser, lab: Lab) -> None:
    page.wait("return document.querySelector('.box.endpoint')", "endpoints")
    page.run("document.getElementById('filter').focus()")
    page.press("blue-b")
    page.wait("return document.querySelectorAll('.box.endpoint').length === 1", "one endpoint")
    assert page.texts(".box.network > title, .box.endpoint > title") == ["blue", "blue-b"]


def test_a_linkspand_that_is_gone_is_said_and_its_picture_stays(chromium: Browser, lab: Lab) -> None:
    chromium.open(PAGE)
    chromium.wait("return document.querySelector('.box.endpoint')", "endpoints")
    lab.host.stop()
    chromium.wait("return document.body.classList.contains('stale')", "the page to say so")
    assert "linkspand does not answer" in chromium.texts("#state")[0]
    assert "What is shown is of " in chromium.texts("#state")[0]
    assert set(chromium.texts(".box.endpoint > title")) == {"blue-a", "blue-b"}
    lab.host.start()
    chromium.wait("return !document.body.classList.contains('stale')", "the page to go on")
    assert chromium.texts("#state") == [""]
    assert all("ERR_CONNECTION_REFUSED" in line for line in chromium.complaints())
    chromium.requests()


@pytest.fixture
def fake_page(machine: Host, chromium: Browser, tmp_path: Path) -> Iterator[tuple[str, NetworkController, FakeDriver]]:
    """The URL of a page whose networks and endpoints are what the test says."""
    driver = FakeDriver()
    controller = fake_controller(tmp_path, driver)
    controller.start()
    with socket_in(f"/proc/{machine.pid}/ns/net", socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with page_server(controller, sock) as url:
            yield url, controller, driver
            assert chromium.complaints() == []
            assert [asked for asked in chromium.requests() if not asked.startswith(url)] == []
            chromium.open("about:blank")
    controller.stop()


def test_a_name_is_text_whatever_it_is(chromium: Browser, fake_page: tuple[str, NetworkController, FakeDriver]) -> None:
    url, controller, _ = fake_page
    network = Network(
        id=NetworkId("1" * 64), name=HOSTILE, driver="bridge", state=NetworkState.ACTIVE, created=utcnow(), segment=99
    )
    controller._records.commit(put=[network])
    chromium.open(url)
    chromium.wait("return document.querySelectorAll('.box.network').length === 4", "all networks")
    chromium.run(
        "document.querySelector('[data-key^=\"network:1\"]').dispatchEvent(new Event('click', {bubbles: true}))"
    )
    chromium.wait("return !document.getElementById('details').hidden", "details")
    assert HOSTILE in chromium.texts(".box.network > title")
    assert chromium.texts("#details h2") == [HOSTILE]
    assert chromium.run("return document.querySelectorAll('img, svg script, main script').length") == 0
    assert chromium.run("return document.title") == "Linkspan"


def test_more_than_500_endpoints_are_drawn_as_few(
    chromium: Browser, fake_page: tuple[str, NetworkController, FakeDriver]
) -> None:
    url, controller, driver = fake_page
    network = controller.network("bridge")
    controller._records.commit(put=[joined(network, place) for place in range(600)])
    chromium.open(url)
    chromium.wait("return document.querySelector('.box.rest')", "the rest")
    assert chromium.run("return document.querySelectorAll('.box.endpoint').length") == 499
    assert chromium.texts(".box.rest > title") == ["101 more"]
    for endpoint in controller.endpoints():
        driver.tallies[endpoint.id] = EndpointCounters(out_fast_packets=10, out_fast_bytes=10_000_000)
    chromium.wait(f"{RATES} return rates(arguments[0])[0] > 1e8", "the sum of their rates", f"rest:{network.id}")


def joined(network: Network, place: int) -> Endpoint:
    """An endpoint as a container engine's, whose namespace's name is its sandbox's."""
    return Endpoint(
        id=EndpointId(f"{place:064x}"),
        network_id=network.id,
        sandbox_id=SandboxId(""),
        state=EndpointState.JOINED,
        created=utcnow(),
        sandbox_key=f"/run/netns/s{place}",
    )


def test_the_page_can_be_left_out(machine: Host, lab: Lab) -> None:
    config = machine.dir / "no-page.toml"
    config.write_text("[metrics]\npage = false\n")
    machine.stop()
    machine.start("--config", str(config))
    codes = [
        machine.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"{PAGE}{path}").stdout
        for path in ("", "stats", "metrics")
    ]
    assert codes == ["404", "404", "200"]
