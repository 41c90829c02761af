"""Parses Go's template language (text/template) into the nodes of `template_nodes`.

All of the language but named templates (define, template, block). Errors carry Go's texts.
Source: https://pkg.go.dev/text/template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from control.cli import template_nodes as nodes
from control.cli.gotext import quoted, unquote, unquote_rune

_TOKEN: Final = re.compile(
    r"""
      (?P<space>[ \t\r\n]+)
    | (?P<string>"(?:\\[^\n]|[^"\\\n])*")
    | (?P<raw>`[^`]*`)
    | (?P<char>'(?:\\[^\n]|[^'\\\n])+')
    | (?P<number>[+-]?(?:0[xXbBoO][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\w*)
    | (?P<variable>\$\w*)
    | (?P<field>\.[^\W\d]\w*)
    | (?P<dot>\.)
    | (?P<word>[^\W\d]\w*)
    | (?P<declare>:=)
    | (?P<assign>=)
    | (?P<pipe>\|)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<comma>,)
    | (?P<other>[!#-&(-9;-_a-~])
    """,
    re.VERBOSE,
)
_ENDS_NAME: Final = re.compile(r"[ \t\r\n.,|:()]|\}\}|\Z")
_OPERANDS: Final = {"string", "raw", "char", "number", "variable", "field", "dot", "word", "open"}
_KEYWORDS: Final = {"if", "else", "end", "range", "with", "break", "continue", "define", "template", "block"}
_MAX_NESTING: Final = 100


class TemplateError(Exception):
    """A template that cannot be parsed or executed; the text is Go's."""


class Token(NamedTuple):
    kind: str
    text: str
    at: int


@dataclass
class _Action:
    """What stands between one pair of delimiters."""

    at: int
    tokens: list[Token]
    index: int = 0

    def peek(self, skip_space: bool = True) -> Token:
        while skip_space and self.tokens[self.index].kind == "space":
            self.index += 1
        return self.tokens[self.index]

    def next(self, skip_space: bool = True) -> Token:
        token = self.peek(skip_space)
        self.index = min(self.index + 1, len(self.tokens) - 1)
        return token


def parse(text: str, functions: Collection[str]) -> list[nodes.Node]:
    """Returns the template's nodes; raises TemplateError for a text that is no template, or an unknown function."""
    return _Parser(text, functions).parse()


@dataclass
class _Parser:
    text: str
    functions: Collection[str]
    variables: list[str] = field(default_factory=lambda: ["$"])
    loops: int = 0
    nesting: int = 0
    pieces: Iterator[nodes.Text | _Action] = field(init=False)

    def parse(self) -> list[nodes.Node]:
        self.pieces = self._pieces()
        body, stop = self._list(None)
        assert stop is None
        return body

    def _fail(self, at: int, problem: str) -> TemplateError:
        return TemplateError(f"template: :{self.text.count(chr(10), 0, at) + 1}: {problem}")

    # Lexing: the text between actions, trimmed where a delimiter has a dash, and the tokens of each action.

    def _pieces(self) -> Iterator[nodes.Text | _Action]:
        at, trim = 0, False
        while True:
            start = self.text.find("{{", at)
            plain = self.text[at:] if start < 0 else self.text[at:start]
            if trim:
                plain = plain.lstrip(" \t\r\n")
            inside = start + 2
            if start >= 0 and re.match(r"-[ \t\r\n]", self.text[inside : inside + 2]):
                plain = plain.rstrip(" \t\r\n")
                inside += 1
            if plain:
                yield nodes.Text(at, plain)
            if start < 0:
                return
            comment = re.compile(r"[ \t\r\n]*/\*").match(self.text, inside) if inside > start + 2 else None
            if self.text.startswith("/*", inside) or comment:
                at, trim = self._comment(comment.end() - 2 if comment else inside)
            else:
                tokens, at, trim = self._tokens(inside)
                yield _Action(start, tokens)

    def _comment(self, at: int) -> tuple[int, bool]:
        end = self.text.find("*/", at)
        if end < 0:
            raise self._fail(at, "unclosed comment")
        close = re.compile(r"(?:[ \t\r\n]+(-))?\}\}").match(self.text, end + 2)
        if close is None:
            raise self._fail(at, "comment ends before closing delimiter")
        return close.end(), bool(close[1])

    def _tokens(self, at: int) -> tuple[list[Token], int, bool]:
        tokens: list[Token] = []
        depth = 0
        close = re.compile(r"([ \t\r\n]-)?\}\}")
        while True:
            end = close.match(self.text, at)
            if end:
                if depth:
                    raise self._fail(at, "unclosed left paren")
                tokens.append(Token("end", "", at))
                return tokens, end.end(), bool(end[1])
            found = _TOKEN.match(self.text, at)
            if found is None:
                raise self._bad_character(at)
            kind = str(found.lastgroup)
            token = Token(kind, found.group(), at)
            # A space in front of "-}}" belongs to the delimiter.
            if kind == "space" and self.text.startswith("-}}", found.end()):
                at = found.end() - 1
                continue
            if kind in ("field", "variable", "word") and not _ENDS_NAME.match(self.text, found.end()):
                raise self._bad_character(found.end())
            depth += {"open": 1, "close": -1}.get(kind, 0)
            if depth < 0:
                raise self._fail(at, "unexpected right paren")
            tokens.append(token)
            at = found.end()

    def _bad_character(self, at: int) -> TemplateError:
        if at >= len(self.text):
            return self._fail(at, "unclosed action")
        char = self.text[at]
        if found_name := re.compile(r"[\w.$]").match(self.text, at - 1):
            return self._fail(found_name.end(), f"bad character U+{ord(char):04X} '{char}'")
        if char == '"':
            return self._fail(at, "unterminated quoted string")
        if char == "`":
            return self._fail(at, "unterminated raw quoted string")
        if char == "'":
            return self._fail(at, "unterminated character constant")
        if char == ":":
            return self._fail(at, "expected :=")
        return self._fail(at, f"bad character U+{ord(char):04X} '{char}'")

    # Parsing.

    def _list(self, owner: str | None) -> tuple[list[nodes.Node], _Action | None]:
        """Collects nodes up to the `{{end}}` or `{{else}}` that ends this list, which it returns too."""
        body: list[nodes.Node] = []
        for piece in self.pieces:
            if isinstance(piece, nodes.Text):
                body.append(piece)
                continue
            keyword = piece.peek()
            if keyword.kind == "word" and keyword.text in ("end", "else"):
                if owner is None:
                    raise self._fail(piece.at, f"unexpected {{{{{keyword.text}}}}}")
                return body, piece
            body.append(self._action(piece))
        if owner is not None:
            raise self._fail(len(self.text), "unexpected EOF")
        return body, None

    def _action(self, action: _Action) -> nodes.Node:
        keyword = action.peek()
        if keyword.kind != "word" or keyword.text not in _KEYWORDS:
            return nodes.Action(keyword.at, self._pipeline(action, "command"))
        action.next()
        if keyword.text in ("break", "continue"):
            self._expect_end(action, f"{{{{{keyword.text}}}}}")
            if not self.loops:
                raise self._fail(keyword.at, f"{{{{{keyword.text}}}}} outside {{{{range}}}}")
            return nodes.Jump(keyword.at, keyword.text)
        if keyword.text in ("if", "with", "range"):
            return self._branch(action, keyword)
        raise self._fail(keyword.at, f"named templates are not supported: {{{{{keyword.text}}}}}")

    def _branch(self, action: _Action, keyword: Token) -> nodes.Branch:
        self.nesting += 1
        if self.nesting > _MAX_NESTING:
            raise self._fail(keyword.at, "max nesting depth exceeded")
        known = len(self.variables)
        in_range = keyword.text == "range"
        pipeline = self._pipeline(action, keyword.text)
        self.loops += in_range
        body, stop = self._list(keyword.text)
        self.loops -= in_range
        otherwise: list[nodes.Node] = []
        assert stop is not None
        ending = stop.next()
        if ending.text == "else":
            chained = stop.peek()
            if chained.kind == "word" and chained.text == keyword.text and not in_range:
                # "{{else if x}}" is an if inside the else, and shares its {{end}}.
                stop.next()
                otherwise = [self._branch(stop, chained)]
            else:
                self._expect_end(stop, "input" if chained.text in _KEYWORDS else "else")
                otherwise, stop = self._list(keyword.text)
                assert stop is not None
                ending = stop.next()
                if ending.text == "else":
                    raise self._fail(ending.at, "expected end; found {{else}}")
        if ending.text == "end":
            self._expect_end(stop, "end")
        del self.variables[known:]
        self.nesting -= 1
        return nodes.Branch(keyword.at, keyword.text, pipeline, body, otherwise)

    def _expect_end(self, action: _Action, where: str) -> None:
        token = action.peek()
        if token.kind != "end":
            raise self._unexpected(token, where)

    def _unexpected(self, token: Token, where: str) -> TemplateError:
        return self._fail(token.at, f"unexpected {_shown(token)} in {where}")

    def _pipeline(self, action: _Action, where: str, until: str = "end") -> nodes.Pipeline:
        start = action.peek()
        targets, declares = self._targets(action, where) if until == "end" else ((), False)
        commands: list[nodes.Command] = []
        while True:
            commands.append(self._command(action, where))
            token = action.next()
            if token.kind == until:
                break
            if token.kind != "pipe":
                raise self._unexpected(token, where)
            # Go takes a "|" with nothing after it.
            if action.peek().kind == until:
                action.next()
                break
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.args[0], (nodes.Literal, nodes.Dot)):
                raise self._fail(command.at, f"non executable command in pipeline stage {stage}")
        if declares:
            self.variables += targets
        return nodes.Pipeline(start.at, tuple(commands), targets, declares)

    def _targets(self, action: _Action, where: str) -> tuple[tuple[str, ...], bool]:
        """Takes "$x :=", "$k, $v :=" or "$x =" off the front; gives back what turns out to be an operand."""
        begin = action.index
        names: list[str] = []
        while action.peek().kind == "variable":
            names.append(action.next().text)
            token = action.peek()
            if token.kind in ("declare", "assign"):
                action.next()
                limit = 2 if where == "range" else 1
                if len(names) > limit:
                    raise self._fail(token.at, f"too many declarations in {where}")
                return tuple(names), token.kind == "declare"
            if token.kind != "comma":
                break
            action.next()
        action.index = begin
        return (), False

    def _command(self, action: _Action, where: str) -> nodes.Command:
        start = action.peek()
        if start.kind in ("end", "close"):
            raise self._fail(start.at, f"missing value for {where}")
        args: list[nodes.Node] = []
        while True:
            token = action.peek()
            if token.kind not in _OPERANDS:
                if not args:
                    raise self._unexpected(token, where)
                if token.kind not in ("pipe", "close", "end"):
                    raise self._unexpected(token, "operand")
                break
            args.append(self._operand(action))
            if action.peek(skip_space=False).kind in _OPERANDS:
                raise self._unexpected(action.peek(), "operand")
        return nodes.Command(start.at, tuple(args))

    def _operand(self, action: _Action) -> nodes.Node:
        token = action.next()
        operand = self._term(action, token)
        # Go places an operand with several fields where the second begins.
        at = action.peek(skip_space=False).at
        names = []
        while action.peek(skip_space=False).kind == "field":
            names.append(action.next().text[1:])
        if not names:
            return operand
        fields = tuple(names)
        match operand:
            case nodes.Field(_, first):
                return nodes.Field(at, first + fields)
            case nodes.Variable(_, name, first):
                return nodes.Variable(at, name, first + fields)
            case nodes.Literal() | nodes.Dot():
                raise self._fail(token.at, f"unexpected . after term {quoted(str(operand))}")
        return nodes.Chain(at, operand, fields)

    def _term(self, action: _Action, token: Token) -> nodes.Node:
        kind, text, at = token
        simple: dict[str, Callable[[], nodes.Node]] = {
            "dot": lambda: nodes.Dot(at),
            "field": lambda: nodes.Field(at, (text[1:],)),
            "string": lambda: nodes.Literal(at, self._unquoted(token), text),
            "raw": lambda: nodes.Literal(at, text[1:-1], text),
            "char": lambda: nodes.Literal(at, self._rune(token), text),
            "number": lambda: nodes.Literal(at, self._number(token), text),
            "word": lambda: self._word(token),
        }
        if kind in simple:
            return simple[kind]()
        if kind == "variable":
            self._check_variable(text, at)
            return nodes.Variable(at, text)
        self.nesting += 1
        if self.nesting > _MAX_NESTING:
            raise self._fail(at, "max expression depth exceeded")
        inner = self._pipeline(action, "parenthesized pipeline", until="close")
        self.nesting -= 1
        return inner

    def _check_variable(self, name: str, at: int) -> None:
        if name not in self.variables:
            raise self._fail(at, f"undefined variable {quoted(name)}")

    def _word(self, token: Token) -> nodes.Node:
        constants = {"true": True, "false": False, "nil": None}
        if token.text in constants:
            return nodes.Literal(token.at, constants[token.text], token.text)
        if token.text in _KEYWORDS:
            raise self._fail(token.at, f"unexpected <{token.text}> in operand")
        if token.text not in self.functions:
            raise self._fail(token.at, f"function {quoted(token.text)} not defined")
        return nodes.Function(token.at, token.text)

    def _unquoted(self, token: Token) -> str:
        try:
            return unquote(token.text)
        except ValueError as error:
            raise self._fail(token.at, "invalid syntax") from error

    def _rune(self, token: Token) -> int:
        try:
            return unquote_rune(token.text)
        except ValueError as error:
            raise self._fail(token.at, f"malformed character constant: {token.text}") from error

    def _number(self, token: Token) -> int | float:
        text = token.text
        try:
            # Go reads a leading zero as octal, as Python does not.
            octal = re.fullmatch(r"[+-]?0[0-7_]+", text)
            return int(text, 8) if octal else int(text, 0)
        except ValueError:
            try:
                return float(text)
            except ValueError as error:
                raise self._fail(token.at, f"bad number syntax: {quoted(text)}") from error


def _shown(token: Token) -> str:
    match token:
        case ("end", _, _):
            return "{{end of action}}"
        case ("word", text, _) if text in _KEYWORDS or text == "nil":
            return f"<{text}>"
        case ("dot", _, _):
            return "<.>"
    return quoted(token.text)
