"""Executes Go templates for `--format`: {{.Field}}, pipelines, if, with, range, variables, Docker's functions.

A value is what `shapes` and `json` make. Errors carry Go's texts, down to the place in the template.
Source: https://pkg.go.dev/text/template; functions: docker/cli, package templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from control.cli import template_nodes as nodes
from control.cli.functions import FUNCTIONS, CallError, Func, check_argument
from control.cli.gotext import go_type, plain
from control.cli.shapes import Headers, Row, Struct, TypedMap
from control.cli.template_parse import TemplateError, parse

__all__ = ["Template", "TemplateError"]

NO_VALUE: Final = "<no value>"
_ANY: Final = "interface {}"


class _Jump(Exception):
    def __init__(self, keyword: str) -> None:
        self.keyword = keyword


class Template:
    """A parsed template, to be executed any number of times.

    `functions` replaces those of the same name. Raises TemplateError for a text that is no template.
    """

    def __init__(self, text: str, functions: Mapping[str, Func] | None = None) -> None:
        self.text = text
        self.functions = {**FUNCTIONS, **(functions or {})}
        self.nodes = parse(text, self.functions)

    def execute(self, data: Any, *, missing_is_error: bool = False) -> str:
        """Returns the text made of `data`; raises TemplateError where Go would.

        `missing_is_error` makes a key that a map does not have an error instead of "<no value>".
        """
        output: list[str] = []
        self.write(output, data, missing_is_error=missing_is_error)
        return "".join(output)

    def write(self, output: list[str], data: Any, *, missing_is_error: bool = False) -> None:
        """As `execute`, but leaves in `output` what was made before an error."""
        _Run(self, data, output, missing_is_error).body(self.nodes, data)


class _Run:
    """One execution: the variables in scope and the output so far."""

    def __init__(self, template: Template, data: Any, output: list[str], missing_is_error: bool) -> None:
        self._template = template
        self._output = output
        self._missing_is_error = missing_is_error
        self._variables: list[tuple[str, Any]] = [("$", data)]
        self._at: nodes.Node = nodes.Dot(0)

    def body(self, items: Sequence[nodes.Node], dot: Any) -> None:
        for node in items:
            match node:
                case nodes.Text(_, text):
                    self._output.append(text)
                case nodes.Action(_, pipeline):
                    value = self._pipeline(pipeline, dot)
                    if not pipeline.targets:
                        self._output.append(NO_VALUE if value is None else plain(value))
                case nodes.Jump(_, keyword):
                    raise _Jump(keyword)
                case nodes.Branch(_, "range"):
                    self._range(node, dot)
                case nodes.Branch():
                    self._choose(node, dot)

    @contextmanager
    def _scope(self) -> Iterator[None]:
        known = len(self._variables)
        try:
            yield
        finally:
            del self._variables[known:]

    def _choose(self, node: nodes.Branch, dot: Any) -> None:
        with self._scope():
            value = self._pipeline(node.pipeline, dot)
            if truth(value):
                self.body(node.body, value if node.keyword == "with" else dot)
            else:
                self.body(node.otherwise, dot)

    def _range(self, node: nodes.Branch, dot: Any) -> None:
        with self._scope():
            value = self._pipeline(node.pipeline, dot, assign=False)
            is_empty = True
            for key, item in self._items(value):
                is_empty = False
                with self._scope():
                    self._bind(node.pipeline, (item,) if len(node.pipeline.targets) < 2 else (key, item))
                    try:
                        self.body(node.body, item)
                    except _Jump as jump:
                        if jump.keyword == "break":
                            break
            if is_empty:
                self.body(node.otherwise, dot)

    def _items(self, value: Any) -> Iterable[tuple[Any, Any]]:
        match value:
            case None:
                return ()
            case list():
                return enumerate(value)
            case dict():
                return sorted(value.items())
            case int() if not isinstance(value, bool):
                return ((index, index) for index in range(value))
        raise self._fail(f"range can't iterate over {plain(value)}")

    def _bind(self, pipeline: nodes.Pipeline, values: Sequence[Any]) -> None:
        for name, value in zip(pipeline.targets, values, strict=False):
            if pipeline.declares:
                self._variables.append((name, value))
                continue
            known = [index for index, (other, _) in enumerate(self._variables) if other == name]
            if not known:
                raise self._fail(f"undefined variable: {name}")
            self._variables[known[-1]] = (name, value)

    def _fail(self, problem: str, at: nodes.Node | None = None) -> TemplateError:
        """An error at a node, by default the one that was evaluated last."""
        node = at or self._at
        before = self._template.text[: node.at]
        line, column = before.count("\n") + 1, len(before[before.rfind("\n") + 1 :].encode())
        return TemplateError(f'template: :{line}:{column}: executing "" at <{node}>: {problem}')

    # Values. `final` is a list of the one value a pipeline hands on, empty for the first command.

    def _pipeline(self, pipeline: nodes.Pipeline, dot: Any, assign: bool = True) -> Any:
        self._at = pipeline
        final: list[Any] = []
        for command in pipeline.commands:
            final = [self._command(command, dot, final)]
        if assign:
            self._bind(pipeline, final)
        return final[0]

    def _command(self, command: nodes.Command, dot: Any, final: list[Any]) -> Any:
        first, *rest = command.args
        self._at = first
        match first:
            case nodes.Field(_, names):
                return self._fields(command, dot, dot, names, rest, final)
            case nodes.Chain(_, head, names):
                return self._fields(command, self._operand(head, dot), dot, names, rest, final)
            case nodes.Variable(_, name, names) if names:
                return self._fields(command, self._variable(name), dot, names, rest, final)
            case nodes.Function(_, name):
                return self._call(command, name, rest, dot, final)
        if rest or final:
            raise self._fail(f"can't give argument to non-function {first}")
        return self._operand(first, dot)

    def _operand(self, node: nodes.Node, dot: Any) -> Any:
        self._at = node
        match node:
            case nodes.Dot():
                return dot
            case nodes.Literal(_, None, "nil"):
                raise self._fail("nil is not a command")
            case nodes.Literal(_, value, _):
                return value
            case nodes.Pipeline():
                return self._pipeline(node, dot)
            case nodes.Variable(_, name, ()):
                return self._variable(name)
        return self._command(nodes.Command(node.at, (node,)), dot, [])

    def _argument(self, node: nodes.Node, dot: Any) -> Any:
        return None if _is_nil(node) else self._operand(node, dot)

    def _variable(self, name: str) -> Any:
        return next(value for known, value in reversed(self._variables) if known == name)

    def _fields(
        self,
        command: nodes.Command,
        receiver: Any,
        dot: Any,
        names: Sequence[str],
        args: Sequence[nodes.Node],
        final: list[Any],
    ) -> Any:
        """Reads one field after the other; the last may be a method that takes the arguments."""
        kind = go_type(receiver)
        for name in names[:-1]:
            receiver, kind = self._field(receiver, kind, name, False)
        name = names[-1]
        method = receiver.methods().get(name) if isinstance(receiver, (Row, Headers)) else None
        if method is not None:
            values = [(arg, self._argument(arg, dot)) for arg in args] + [(command.args[0], value) for value in final]
            return self._apply(command, name, Func(method, (str,)), values)
        if isinstance(receiver, Row) and (args or final) and name in receiver.fields():
            raise self._fail(f"wrong number of args for {name}: want 0 got {len(args) + len(final)}")
        return self._field(receiver, kind, name, bool(args or final))[0]

    def _field(self, receiver: Any, kind: str, name: str, has_arguments: bool) -> tuple[Any, str]:
        """Returns the field and the Go type that its container gives it; `kind` is the receiver's."""
        match receiver:
            case Row():
                known: Mapping[str, Any] = receiver.fields()
            case Struct():
                known = receiver.values
            case dict():
                if has_arguments:
                    raise self._fail(f"{name} is not a method but has arguments")
                if name not in receiver and self._missing_is_error:
                    raise self._fail(f'map has no entry for key "{name}"')
                value = receiver.get(name)
                return value, go_type(value) if isinstance(receiver, TypedMap) else _ANY
            case None:
                if self._missing_is_error:
                    raise self._fail(f"nil pointer evaluating {_ANY}.{name}")
                return None, _ANY
            case _:
                known = {}
        if name not in known:
            raise self._fail(f"can't evaluate field {name} in type {kind}")
        if has_arguments:
            raise self._fail(f"{name} has arguments but cannot be invoked as function")
        return known[name], go_type(known[name])

    def _call(self, command: nodes.Command, name: str, args: Sequence[nodes.Node], dot: Any, final: list[Any]) -> Any:
        if name in ("and", "or"):
            return self._decide(name, args, dot, final)
        values = [(arg, self._argument(arg, dot)) for arg in args] + [(command.args[0], value) for value in final]
        return self._apply(command, name, self._template.functions[name], values)

    def _decide(self, name: str, args: Sequence[nodes.Node], dot: Any, final: list[Any]) -> Any:
        """`and` and `or` stop at the argument that decides, and return it."""
        if not args and not final:
            raise self._fail(f"wrong number of args for {name}: want at least 1 got 0")
        value: Any = None
        for arg in args:
            value = self._argument(arg, dot)
            if truth(value) == (name == "or"):
                return value
        return final[0] if final else value

    def _apply(self, command: nodes.Command, name: str, func: Func, args: Sequence[tuple[nodes.Node, Any]]) -> Any:
        least = len(func.parameters)
        if len(args) < least or (len(args) > least and func.variadic is None):
            want = f"at least {least}" if func.variadic is not None else f"{least}"
            raise self._fail(f"wrong number of args for {name}: want {want} got {len(args)}", command.args[0])
        kinds = [*func.parameters, *[func.variadic or object] * (len(args) - least)]
        for (node, value), kind in zip(args, kinds, strict=True):
            problem = check_argument(value, kind, node if isinstance(node, nodes.Literal) else None)
            if problem:
                raise self._fail(problem, node)
        try:
            return func.call(*(value for _, value in args))
        except CallError as error:
            raise self._fail(f"error calling {name}: {error}", command) from error


def _is_nil(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Literal) and node.source == "nil"


def truth(value: Any) -> bool:
    """Whether Go counts a value as true: not false, not 0, not empty, not nil."""
    return isinstance(value, (Struct, Row)) or bool(value)
