"""Lays out help texts as Docker does: usage, description, aliases, commands, and a column of wrapped flags."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from control.cli.command import Flag

# A line may run this much over rather than leave a short word alone on the next one; columns narrower than
# the minimum start on a line of their own.
_SLOP: Final = 5
_NARROW: Final = 24
_BLOCK_INDENT: Final = 16


def help_text(ctx: click.Context, command: click.Command, width: int | None = None) -> str:
    """The help of a command, laid out for `width` columns, by default those of the terminal."""
    from control.cli.command import Command, Flag, Group, usage_line

    usage = f"{ctx.command_path} {command.synopsis or 'COMMAND'}" if isinstance(command, Group) else usage_line(ctx)
    parts = [f"Usage:  {usage}", command.short_help or ""]
    if isinstance(command, Command) and command.aliases:
        paths = [ctx.command_path, *(f"{ctx.parent.command_path} {name}" for name in command.aliases if ctx.parent)]
        parts.append("Aliases:\n  " + ", ".join(paths))
    if isinstance(command, Group):
        members = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        width = max(11, *(len(name) for name, _ in members))
        rows = [f"  {name:<{width}} {member.short_help}" for name, member in members if member and not member.hidden]
        parts.append("Commands:\n" + "\n".join(rows))
    flags = [param for param in command.params if isinstance(param, Flag) and not param.hidden]
    if flags:
        parts.append("Options:\n" + flag_usages(flags, (width or _columns()) - 1))
    if isinstance(command, Group):
        parts.append(f"Run '{ctx.command_path} COMMAND --help' for more information on a command.")
    return "\n\n".join(parts)


def _columns() -> int:
    """The width of the terminal, 80 without one."""
    return shutil.get_terminal_size().columns if sys.stdin is not None and sys.stdin.isatty() else 80


def flag_usages(flags: Sequence[Flag], width: int) -> str:
    """One entry per flag, sorted by name, the texts starting in one column and wrapped to `width`."""
    heads = {}
    for flag in sorted(flags, key=lambda flag: flag.long):
        head = f"  -{flag.short}, --{flag.long}" if flag.short else f"      --{flag.long}"
        heads[f"{head} {flag.kind.label}".rstrip()] = flag
    column = max(map(len, heads)) + 3
    entries = []
    for head, flag in heads.items():
        text = f"{flag.text} (default {flag.shown})" if flag.shown else flag.text
        entries.append(f"{head:<{column}}{_wrapped(text, column, width)}")
    return "\n".join(entries)


def _wrapped(text: str, indent: int, width: int) -> str:
    room = width - indent
    first = ""
    if room < _NARROW:
        indent, room = _BLOCK_INDENT, width - _BLOCK_INDENT
        first = "\n" + " " * indent
    if room < _NARROW:
        return text
    lines: list[str] = []
    while text:
        line, text = _take_line(text, room - _SLOP)
        lines += line.split("\n")
    return first + ("\n" + " " * indent).join(lines)


def _take_line(text: str, room: int) -> tuple[str, str]:
    """Splits off what goes on the next line: all that is left if it fits, else up to the best break in `room`."""
    if len(text) < room + _SLOP:
        return text, ""
    head = text[:room]
    newline = head.rfind("\n")
    cut = newline if newline > 0 else max(head.rfind(" "), head.rfind("\t"))
    return (text[:cut], text[cut + 1 :]) if cut > 0 else (text, "")
