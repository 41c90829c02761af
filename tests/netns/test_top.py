"""`linkspan top` on a terminal, before real traffic: what it shows is what the sandboxes' own devices counted."""

from __future__ import annotations

import json
import signal
from functools import partial

import pytest

from tests.hosts import Host
from tests.netns.flows import sent_bits_per_second, udp_flow
from tests.netns.lab import Lab
from tests.terminal import Terminal

FORGED = "02:00:00:00:00:66"
MARGIN = 0.3
"""Of the rates: the screen's second is not the same as the test's."""
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}


@pytest.fixture(scope="module")
def lab(machine: Host) -> Lab:
    made = Lab(machine, "blue")
    assert made.a.pings(made.b.ip4)
    return made


def cells(lines: list[str], name: str) -> list[str]:
    """What follows a name in its row: out and in b/s, out and in p/s, fast, p50, p99, rtt, drops."""
    return next((line.split()[1:] for line in lines if line.split()[:1] == [name]), [])


def value(cell: str) -> float:
    return float(cell.rstrip("kMG")) * PREFIXES.get(cell[-1], 1)


def sends(name: str, expected: float, lines: list[str]) -> bool:
    found = cells(lines, name)
    return bool(found) and found[0] != "-" and abs(value(found[0]) / expected - 1) < MARGIN


def shows_the_flow(expected: float, lines: list[str]) -> bool:
    """Whether blue-a is seen to send so many bits per second, in packets that iperf3 fills to the MTU, to blue-b, and
    how long those take."""
    a, b = cells(lines, "blue-a"), cells(lines, "blue-b")
    if len(b) < 7 or not sends("blue-a", expected, lines):
        return False
    out, packets, received = value(a[0]), value(a[2]), value(b[1])
    return (
        value(a[1]) < out / 10
        and a[4] in ("99%", "100%")
        and abs(out / 8 / packets / 1490 - 1) < MARGIN
        and value(b[0]) < out / 10
        and abs(received / out - 1) < 0.02
        and b[5].endswith("s")
        and b[6].endswith("s")
    )


def test_rates_on_the_screen_are_those_of_the_devices(lab: Lab) -> None:
    with udp_flow(lab.a, lab.b), Terminal(lab.host.cli("top")) as terminal:
        terminal.wait(lambda lines: cells(lines, "blue-a")[:1] not in ([], ["-"], ["0"]), "traffic to show")
        expected = sent_bits_per_second(lab.a)
        assert 6e6 < expected < 12e6
        terminal.wait(partial(shows_the_flow, expected), f"{expected:.0f} b/s from blue-a to blue-b")
        terminal.type("q")
        assert terminal.exit_status() == 0


def test_drops_show_with_their_reason(lab: Lab) -> None:
    frame = lab.frame(b"forged")
    frame.src = FORGED
    with Terminal(lab.host.cli("top", "--filter", "name=blue-a", "--sort", "drops")) as terminal, lab.a.wire() as wire:
        terminal.wait(lambda lines: cells(lines, "blue-a"), "the endpoint")
        terminal.type("\t\t")
        terminal.wait(lambda lines: "blue-a" in lines[4] and not cells(lines, "blue"), "endpoints alone")

        def drops(lines: list[str]) -> bool:
            wire.send(*[frame] * 10)
            return cells(lines, "blue-a")[-1:] not in ([], ["0"], ["-"]) and "dropped: spoofed_mac" in lines[-2]

        terminal.wait(drops, "drops")


def test_a_terminal_that_changes_its_size_is_filled(lab: Lab) -> None:
    with Terminal(lab.host.cli("top")) as terminal:
        terminal.wait(lambda lines: cells(lines, "blue") and lines[-1].startswith("q quit"), "a whole screen")
        terminal.resize(150, 40)
        terminal.wait(lambda lines: "LAST MINUTE" in lines[2] and lines[39].startswith("q quit"), "a larger one")
        terminal.resize(40, 10)
        terminal.wait(
            lambda lines: (
                lines[9].startswith("q quit")
                and cells(lines, "blue")
                and lines[2].split()[2:] == ["OUT", "b/s", "IN", "b/s"]
            ),
            "a small one, with the columns that it has room for",
        )


def test_a_linkspand_that_goes_and_comes_back(lab: Lab) -> None:
    with udp_flow(lab.a, lab.b), Terminal(lab.host.cli("top", "--interval", "0.5")) as terminal:
        terminal.wait(lambda lines: cells(lines, "blue-a")[:1] not in ([], ["-"], ["0"]), "traffic to show")
        lab.host.stop(signal.SIGKILL)
        terminal.wait(
            lambda lines: "Cannot connect to linkspand" in lines[1] and cells(lines, "blue-a"),
            "the screen to say so, with what was known",
        )
        lab.host.start()
        expected = sent_bits_per_second(lab.a)
        terminal.wait(
            lambda lines: "networks," in lines[1] and sends("blue-a", expected, lines), f"blue-a at {expected:.0f} b/s"
        )


def test_an_endpoint_that_leaves_goes_from_the_screen(lab: Lab) -> None:
    lab.join("d")
    with Terminal(lab.host.cli("top")) as terminal:
        terminal.wait(lambda lines: cells(lines, "blue-d"), "the endpoint")
        lab.host.api("DELETE", "/linkspan/sandboxes/blue-d?force=1")
        terminal.wait(lambda lines: cells(lines, "blue-a") and not cells(lines, "blue-d"), "it to go")


def test_json_has_the_rates_in_full(lab: Lab) -> None:
    with udp_flow(lab.a, lab.b):
        asked = lab.host.popen(*lab.host.cli("top", "--json", "--interval=2", "-f", "network=blue"), stdout=-1)
        expected = sent_bits_per_second(lab.a)
        output, _ = asked.communicate(timeout=60)
    found = json.loads(output)
    assert 2 <= found["seconds"] < 20
    (blue,) = found["networks"]
    a = next(each for each in blue["endpoints"] if each["sandbox"] == "blue-a")
    assert a["rates"]["out_bits_per_second"] == pytest.approx(expected, rel=MARGIN)
    assert a["rates"]["fast_share"] > 0.98
    assert a["addresses"] == [lab.a.ip4, lab.a.mac]
    assert blue["rates"]["in_bits_per_second"] == pytest.approx(blue["rates"]["out_bits_per_second"], rel=0.02)


def test_without_a_terminal_it_says_what_to_do(lab: Lab) -> None:
    done = lab.host.linkspan("top", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "linkspan: top needs a terminal: use linkspan top --json\n"
    for flags, status, text in (
        (["--sort=size"], 125, 'there is no order "size": use rate, out'),
        (["--filter=nmae=x"], 1, "invalid filter 'nmae'"),
        (["--interval=0"], 125, 'invalid argument "0" for "-i, --interval" flag: not in 0.1 to 3600 seconds'),
    ):
        done = lab.host.linkspan("top", *flags, check=False)
        assert done.returncode == status
        assert text in done.stderr
