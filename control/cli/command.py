"""click commands that parse, complain and explain themselves as Docker's command line does.

Docker's flags differ from click's own: switches take `=false`, map and list flags repeat or hold commas, errors
name the flag in Go's words, and help has Docker's layout. `Command` brings the arguments into a form that leaves
click nothing to guess, so that click's parser, contexts and shell completion stay in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from control.cli.errors import FAILED, USAGE, CliError
from control.cli.values import Kind, String

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


class Arity(NamedTuple):
    """How many arguments a command takes; `most` is None for any number."""

    least: int
    most: int | None

    def complaint(self, count: int) -> str | None:
        """Returns what Docker says about `count` arguments, None when it is right."""
        least, most = self
        if least <= count and (most is None or count <= most):
            return None
        if most == 0:
            return "accepts no arguments"
        number = least if count < least or most is None else most
        some = "at least " if most is None else "" if least == most else "at most "
        return f"requires {some}{number} argument{'s' if number != 1 else ''}"


NO_ARGUMENTS = Arity(0, 0)
ONE_OR_MORE = Arity(1, None)


def exactly(count: int) -> Arity:
    return Arity(count, count)


class _Value(_ParamType):
    """Lets a Kind convert for click and reports what it refuses in Docker's words."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = kind.label or "boolean"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.kind.parse(value)
        except ValueError as error:
            if not isinstance(param, Flag) or ctx is None:
                raise
            shown = value.replace("\\", "\\\\").replace('"', '\\"')
            raise usage_error(ctx, f'invalid argument "{shown}" for "{param.spelling}" flag: {error}') from error


class Flag(click.Option):
    """One flag, described as Docker's help shows it.

    `default` is what the command gets without the flag; `shown` is the default that help mentions.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        help: str,
        *,
        short: str = "",
        default: Any = None,
        shown: str = "",
        hidden: bool = False,
        also: str = "",
        complete: Complete | None = None,
    ) -> None:
        self.kind = kind
        self.text = help
        self.shown = shown
        self.short = short
        self.long = name
        if default is None and isinstance(kind, String):
            default = ""
        spellings = [f"--{name}", *([f"-{short}"] if short else []), *([f"--{also}"] if also else [])]
        super().__init__(
            [*spellings, name.replace("-", "_")],
            type=_Value(kind),
            multiple=kind.repeatable,
            default=None if kind.repeatable else default,
            callback=self._collect if kind.repeatable else None,
            hidden=hidden,
            help=help,
            shell_complete=complete,
        )
        # click must know for completion that the word after a switch is not its value.
        self.is_flag = not kind.takes_value

    @property
    def spelling(self) -> str:
        return f"-{self.short}, --{self.long}" if self.short else f"--{self.long}"

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Takes a value for switches too: `Command.parse_args` has written it out."""
        action = "append" if self.kind.repeatable else "store"
        parser.add_option(obj=self, opts=self.opts, dest=self.name, action=action, nargs=1)

    def _collect(self, ctx: click.Context, param: click.Parameter, values: Any) -> Any:
        return self.kind.collect(values or ())


def usage_error(ctx: click.Context, problem: str) -> CliError:
    """What Docker prints, with exit status 125, about a flag that it cannot take."""
    return CliError(
        f"{problem}\n\nUsage:  {usage_line(ctx)}\n\nRun '{ctx.command_path} --help' for more information", USAGE
    )


def usage_line(ctx: click.Context) -> str:
    synopsis = getattr(ctx.command, "synopsis", "")
    return f"{ctx.command_path} {synopsis}".rstrip()


class _FlagParser:
    """Rewrites arguments as "--flag=value" in full, followed by "--" and the rest; raises CliError as pflag would."""

    def __init__(self, ctx: click.Context, flags: Sequence[Flag], interspersed: bool) -> None:
        self._ctx = ctx
        self._interspersed = interspersed
        self._by_name = {opt: flag for flag in flags for opt in flag.opts}

    def canonical(self, args: Sequence[str]) -> list[str]:
        flags: list[str] = []
        positional: list[str] = []
        rest = iter(args)
        for arg in rest:
            if arg == "--":
                positional += rest
            elif arg.startswith("--"):
                flags.append(self._long(arg, rest))
            elif arg.startswith("-") and arg != "-":
                flags += self._cluster(arg, rest)
            else:
                positional.append(arg)
                if not self._interspersed:
                    positional += rest
        return [*flags, "--", *positional]

    def _long(self, arg: str, rest: Iterator[str]) -> str:
        name, equals, value = arg.partition("=")
        if arg[2:3] in ("-", "="):
            raise usage_error(self._ctx, f"bad flag syntax: {arg}")
        if name == "--help":
            return name
        flag = self._by_name.get(name)
        if flag is None:
            raise usage_error(self._ctx, f"unknown flag: {name}")
        if not equals:
            value = self._value(flag, rest, name)
        return f"{flag.opts[0]}={value}"

    def _cluster(self, arg: str, rest: Iterator[str]) -> Iterator[str]:
        letters = arg[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = self._by_name.get(f"-{letter}")
            if flag is None and letter == "h":
                yield "--help"
                continue
            if flag is None:
                raise usage_error(self._ctx, f"unknown shorthand flag: '{letter}' in -{letter}{letters}")
            if letters.startswith("="):
                value, letters = letters[1:], ""
            elif flag.kind.takes_value and letters:
                value, letters = letters, ""
            else:
                value = self._value(flag, rest, f"'{letter}' in -{letter}")
            yield f"{flag.opts[0]}={value}"

    def _value(self, flag: Flag, rest: Iterator[str], shown: str) -> str:
        if not flag.kind.takes_value:
            return "true"
        value = next(rest, None)
        if value is None:
            raise usage_error(self._ctx, f"flag needs an argument: {shown}")
        return value


class _Parsing(click.Command):
    """Argument parsing and help shared by commands and groups."""

    synopsis = ""

    def _flags(self) -> list[Flag]:
        return [param for param in self.params if isinstance(param, Flag)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            args = _FlagParser(ctx, self._flags(), ctx.allow_interspersed_args).canonical(args)
        except CliError:
            # A half-typed command line is completed as well as it can be.
            if not ctx.resilient_parsing:
                raise
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = True
        return option

    def get_help(self, ctx: click.Context) -> str:
        from control.cli.usage import help_text

        return help_text(ctx, self)


class Command(_Parsing):
    """A command whose callback gets the context's object, `args` (its arguments) and its flags by name.

    `synopsis` is the usage line after the command's own name; commands that run another program take no flags
    after their first argument (`interspersed` False).
    """

    def __init__(
        self,
        name: str,
        callback: Callable[..., Any],
        *,
        synopsis: str,
        short: str,
        arity: Arity,
        flags: Sequence[Flag] = (),
        aliases: Sequence[str] = (),
        complete: Complete | None = None,
        interspersed: bool = True,
    ) -> None:
        arguments = click.Argument(["args"], nargs=-1, type=click.UNPROCESSED, shell_complete=complete)
        super().__init__(
            name,
            callback=click.pass_obj(callback),
            params=[*flags, arguments],
            short_help=short,
            context_settings={"allow_interspersed_args": interspersed},
        )
        self.synopsis = synopsis
        self.arity = arity
        self.aliases = tuple(aliases)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        given = ctx.params["args"] = list(ctx.params.get("args") or ())
        complaint = self.arity.complaint(len(given))
        if complaint and not ctx.resilient_parsing:
            # Docker says "See" for the commands with a minimum and "Run" for all others.
            verb = "See" if self.arity.most is None else "Run"
            root, path = ctx.find_root().command_path, ctx.command_path
            usage = f"Usage:  {usage_line(ctx)}\n\n{verb} '{path} --help' for more information"
            raise CliError(f"{root}: '{path}' {complaint}\n\n{usage}", FAILED)
        return rest


def command(
    name: str,
    synopsis: str,
    arity: Arity,
    *flags: Flag,
    aliases: Sequence[str] = (),
    complete: Complete | None = None,
    interspersed: bool = True,
) -> Callable[[Callable[..., Any]], Command]:
    """Makes a Command of a function whose docstring is the command's short help."""

    def decorate(function: Callable[..., Any]) -> Command:
        return Command(
            name,
            function,
            synopsis=synopsis,
            short=(function.__doc__ or "").strip(),
            arity=arity,
            flags=flags,
            aliases=aliases,
            complete=complete,
            interspersed=interspersed,
        )

    return decorate


class Group(_Parsing, click.Group):
    """A group whose members are imported when they are used; `members` maps a name to "module:attribute".

    `aliases` maps further names to those in `members`; `setup` gets the group's flags before a member is invoked.
    """

    def __init__(
        self,
        name: str,
        *,
        short: str,
        members: dict[str, str],
        aliases: dict[str, str] | None = None,
        flags: Sequence[Flag] = (),
        synopsis: str = "",
        setup: Callable[..., None] | None = None,
    ) -> None:
        super().__init__(name, params=list(flags), short_help=short, callback=self._begin, invoke_without_command=True)
        self._setup = setup
        self.synopsis = synopsis
        self._members = members
        self._aliases = aliases or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._members.get(self._aliases.get(cmd_name, cmd_name))
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found

    def _begin(self, **flags: Any) -> None:
        ctx = click.get_current_context()
        if ctx.invoked_subcommand is None:
            # As Docker: explained on stderr, and not an error.
            click.echo(self.get_help(ctx), err=True)
        elif self._setup is not None:
            self._setup(**flags)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = self.get_command(ctx, args[0])
        if found is None and not ctx.resilient_parsing:
            root, path = ctx.find_root().command_path, ctx.command_path
            usage = "" if ctx.parent is None else f"\n\nUsage:  {path}"
            text = f"{root}: unknown command: {path} {args[0]}{usage}\n\nRun '{path} --help' for more information"
            raise CliError(text, FAILED)
        return found.name if found else None, found, args[1:]
