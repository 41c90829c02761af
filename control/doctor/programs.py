"""Which programs run at the hooks of the networks' devices, in what order, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from control.doctor.findings import Finding, Severity, finding
from control.doctor.view import View
from datapath.attached import Attached, Expected, Hook, holders

_HOOKS: tuple[Hook, ...] = ("ingress", "egress")


def attached(view: View) -> list[tuple[str, Attached, bool]]:
    """(device, program, whether it is ours) of all devices that networks are made of or packets leave by."""
    ours = {(each.ifname, each.hook, each.id) for each in view.expected}
    return [
        (ifname, each, (ifname, hook, each.id) in ours)
        for ifname in sorted({*view.devices, *view.uplinks, *(each.ifname for each in view.expected)})
        if ifname in view.links
        for hook in _HOOKS
        for each in view.hooks.at(view.links[ifname].ifindex, hook)
    ]


def hooks(view: View) -> Iterator[Finding]:
    """Ours that are missing or old, others' among them, and XDP that runs generic."""
    wanted: dict[tuple[str, Hook], list[Expected]] = {}
    for each in view.expected:
        wanted.setdefault((each.ifname, each.hook), []).append(each)
    found: dict[tuple[str, Hook], list[Attached]] = {key: [] for key in wanted}
    for ifname, program, _ in attached(view):
        found.setdefault((ifname, program.hook), []).append(program)
    strangers = [each for key, there in found.items() for each in _foreign(wanted.get(key, ()), there)]
    who = holders({each.id for each in strangers if each.id}) if strangers else {}
    for (ifname, hook), there in found.items():
        mine = wanted.get((ifname, hook), [])
        yield from _of_hook(view, ifname, hook, mine, there, who)


def _of_hook(
    view: View, ifname: str, hook: Hook, mine: Sequence[Expected], there: Sequence[Attached], who: dict[int, list[str]]
) -> Iterator[Finding]:
    subject = view.devices.get(ifname, "")
    ids = [each.id for each in there]
    for each in mine:
        if each.id in ids:
            continue
        old = [other for other in there if other.name == each.name]
        if old:
            what = f"{old[0]}, instead of the one of this linkspand (id {each.id})"
            yield finding("program-outdated", ifname, what, subject=subject)
        elif ifname in view.links:
            yield finding("program-missing", ifname, f"{each.name} does not run at its {hook}", subject=subject)
    places = [ids.index(each.id) for each in mine if each.id in ids]
    for place, program in enumerate(there):
        if program in _foreign(mine, there):
            is_first = bool(places) and place < max(places)
            severity = None if is_first else Severity.NOTE
            order = "before Linkspan's" if is_first else "behind Linkspan's" if places else "where Linkspan has none"
            holder = f", held by {', '.join(who[program.id])}" if who.get(program.id) else ""
            mend = f"if it is not meant to be there: {_detach(ifname, program)}"
            yield finding("program-foreign", ifname, f"{program}, {order}{holder}", mend, severity=severity)
        elif program.how == "generic XDP":
            mend = "use a device whose driver runs XDP, or make the network with -o linkspan.parent_hook=tc"
            yield finding("xdp-generic", ifname, str(program), mend)


def _foreign(mine: Sequence[Expected], there: Sequence[Attached]) -> list[Attached]:
    """Linkspan's are known by their ids, and where that is another, by their names."""
    ids, names = {each.id for each in mine}, {each.name for each in mine}
    return [each for each in there if each.id not in ids and each.name not in names]


def _detach(ifname: str, program: Attached) -> str:
    if program.how == "tcx":
        return f"bpftool net detach tcx_{program.hook} dev {ifname}, or end who has attached it"
    if program.how.endswith("XDP"):
        return f"ip link set dev {ifname} xdp off"
    return f"tc filter del dev {ifname} {program.hook} pref {program.priority}"
