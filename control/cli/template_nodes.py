"""The syntax tree of a template; `str()` of a node is its source as Go shows it in error messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """`at` is the node's offset in the template text, in characters."""

    at: int


@dataclass(frozen=True)
class Text(Node):
    text: str


@dataclass(frozen=True)
class Literal(Node):
    """A string, number, bool or nil; `source` is how it was written."""

    value: Any
    source: str

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True)
class Dot(Node):
    def __str__(self) -> str:
        return "."


@dataclass(frozen=True)
class Field(Node):
    """`.A.B` of the cursor."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True)
class Variable(Node):
    """`$name` and the fields read from it."""

    name: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.name, *self.names))


@dataclass(frozen=True)
class Function(Node):
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Chain(Node):
    """Fields read from a parenthesised pipeline, or from what a function returns."""

    head: Node
    names: tuple[str, ...]

    def __str__(self) -> str:
        head = f"({self.head})" if isinstance(self.head, Pipeline) else str(self.head)
        return head + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True)
class Command(Node):
    """An operand, or a function or method with its arguments."""

    args: tuple[Node, ...]

    def __str__(self) -> str:
        return " ".join(f"({arg})" if isinstance(arg, Pipeline) else str(arg) for arg in self.args)


@dataclass(frozen=True)
class Pipeline(Node):
    """Commands, each given the result of the one before as its last argument; the result goes to `targets`."""

    commands: tuple[Command, ...]
    targets: tuple[str, ...] = ()
    declares: bool = False

    def __str__(self) -> str:
        text = " | ".join(map(str, self.commands))
        if not self.targets:
            return text
        return f"{', '.join(self.targets)} {':=' if self.declares else '='} {text}"


@dataclass(frozen=True)
class Action(Node):
    pipeline: Pipeline


@dataclass(frozen=True)
class Jump(Node):
    """`{{break}}` or `{{continue}}`."""

    keyword: str


@dataclass(frozen=True)
class Branch(Node):
    """`if`, `with` or `range`, by `keyword`."""

    keyword: str
    pipeline: Pipeline
    body: Sequence[Node]
    otherwise: Sequence[Node] = field(default=())
