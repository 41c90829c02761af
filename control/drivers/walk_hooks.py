"""Whether the programs that a trace runs on a frame also run on the devices, and who sees the frame before them.

A trace runs programs by itself (`datapath.trace`). What it says of them is true of the frame only where they are
attached.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Final

from control.drivers.walk import HOST, KERNEL, Walk
from datapath import netns
from datapath.attached import Attached, Hook, Hooks
from datapath.kernel_path import Device
from datapath.loader.sources import PROGRAMS

_MEND: Final = "`linkspan doctor --mend` puts it back"


class Running:
    """The hooks of devices as they are now; `id_of` gives the kernel's number of a loaded program. For one trace."""

    def __init__(self, id_of: Callable[[str], int]) -> None:
        self._id_of = id_of
        self._here: Hooks | None = None

    def at(self, walk: Walk, program: str, device: Device, hook: Hook, otherwise: str, *, inside: bool = False) -> bool:
        """Whether the program runs there; where not, the walk is told so, with what comes of it in `otherwise`.

        `inside` means a device in the walk's sandbox. Others' programs that come before it are told as well: what they
        decide nobody can know. Raises OSError.
        """
        there, id_ = self._programs(walk, device.ifindex, hook, inside), self._id_of(program)
        place = walk.inside if inside else HOST
        for each in takewhile(lambda each: each.id != id_, there):
            if each.name not in PROGRAMS:
                text = f"not judged here, but it sees the frame first: {each}"
                walk.say(KERNEL, device.ifname, "others", text, place)
        if any(each.id == id_ for each in there):
            return True
        found = next((f"{each} is an older one; " for each in there if each.name == program), "")
        text = f"{program} is not attached to its {hook}: {found}{otherwise}; {_MEND}"
        walk.say(KERNEL, device.ifname, "not_attached", text, place)
        return False

    def _programs(self, walk: Walk, ifindex: int, hook: Hook, inside: bool) -> list[Attached]:
        if inside:
            return netns.call(walk.netns_path, lambda: Hooks().at(ifindex, hook))
        if self._here is None:
            self._here = Hooks()
        return self._here.at(ifindex, hook)
