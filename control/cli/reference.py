"""Prints docs/cli.md: every command with its help, from the commands themselves.

python -m control.cli.reference > docs/cli.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from control.cli.command import Group
from control.cli.main import cli
from control.cli.usage import help_text

_WIDTH: Final = 80
_INTRODUCTION: Final = """\
# The command line

`linkspan network` has the words, flags, columns, prompts, formats and exit statuses of `docker network`; `run`,
`exec`, `ps`, `rm` and `logs` do for sandboxes what Docker's do for containers. A sandbox is a network stack: its
programs see the host's files and processes, and a network of their own. `linkspan cluster` is for overlay networks:
[cluster.md](cluster.md).

This page is made by `python -m control.cli.reference`.

## What all commands share

- **The daemon** is found at `-H`/`--host`, else at `LINKSPAN_HOST`, else at `unix:///run/linkspan/linkspan.sock`.
  Root and the members of the group `linkspan` may talk to it. `run` and `exec` need root besides, because they enter
  namespaces.
- **Exit status**: 0; 1 when something failed or an argument is missing; 125 for flags that are wrong, and when `run`
  could not make a sandbox; 126 for a program that cannot be executed and 127 for one that is not there; 64 for a
  broken template of `inspect`. `run` and `exec` end with their program's own status, 128 and the number for a signal.
- **`--format`** takes a Go template, as Docker does: `{{.Field.Sub}}`, `{{json .}}`, pipes, `if`, `else if`, `with`,
  `range`, `break`, `continue`, variables, comments, `{{- trim -}}`, and the functions `and` `or` `not` `eq` `ne` `lt`
  `le` `gt` `ge` `index` `slice` `len` `print` `printf` `println` `json` `join` `split` `lower` `upper` `title` `pad`
  `truncate`. Named templates (`define`, `block`, `template`) and `html`, `js`, `urlquery`, `call` are left out.
  `table TEMPLATE` puts headers above the columns, `json` prints one object a line.
- **Completion**: `source <(linkspan completion bash)`; zsh and fish likewise. Names come from the daemon.
- A request that takes longer than a second shows on stderr, if that is a terminal, how long it has been waited for.

## How a program runs in a sandbox

`run` has the daemon make the sandbox, then enters its network namespace and makes mount and UTS namespaces of its
own: the sandbox's name is the host name; its `hosts`, `resolv.conf` and `hostname` lie over those in `/etc`; `/sys`
shows its devices, with the cgroup and BPF file systems where they were. Mounts made on the host later appear inside
too. On the network `host` nothing is entered and nothing changes.

In the foreground, signals sent to `linkspan run` go on to the program; those of the terminal reach both. With
`--detach` the ID is printed once the program runs; a supervisor of about 8 MiB (2.5 MiB of it its own) waits for the
program's end. Its output goes to a file in the run directory, which is in memory: let a program with much to say
write elsewhere. `exec` enters a sandbox in the same way, with views of its own; it does not join the mount namespace
of the sandbox's program. `--rm` removes the sandbox when the program ends. `linkspan rm -f` ends the programs in it
by SIGKILL.

Where `docker run` has an image `linkspan run` has the command itself: `linkspan run --net NET --name NAME -- CMD
ARG…`. `--network` may be repeated, hold names separated by commas, or be Docker's long form
`name=NET,ip=…,ip6=…,link-local-ip=…,alias=…,mac-address=…,driver-opt=K=V`; `--ip`, `--ip6`, `--link-local-ip`,
`--mac-address` and `--network-alias` are for the first network. `--net` and `--alias` are short for `--network` and
`--network-alias`. `-i` and `-t` are taken and change nothing: the program always has the terminal it was started from.
"""


def reference() -> str:
    """The whole page."""
    return _INTRODUCTION + "".join(_sections(cli, click.Context(cli, info_name="linkspan")))


def _sections(command: click.Command, ctx: click.Context) -> Iterator[str]:
    yield f"\n## {ctx.command_path}\n\n```\n{help_text(ctx, command, _WIDTH)}\n```\n"
    if isinstance(command, Group):
        for name in command.list_commands(ctx):
            member = command.get_command(ctx, name)
            assert member is not None
            yield from _sections(member, click.Context(member, info_name=name, parent=ctx))


if __name__ == "__main__":
    print(reference(), end="")
