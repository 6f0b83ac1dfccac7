"""llama.cpp's GBNF, read and said again in llguidance's Lark. Errors name line and column of the user's text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX = {"x": 2, "u": 4, "U": 8}
_LARGEST = 0x10FFFF
_MOST = 2**16  # repetitions


class GbnfError(ValueError):
    """What is wrong, with its place: "line 2, column 7: ..."."""


@dataclass(frozen=True)
class _Reference:
    """Another rule; at: where it is named."""

    name: str
    at: int


@dataclass(frozen=True)
class _Characters:
    """A regular expression that matches one character, or the characters of a literal."""

    regex: str


@dataclass(frozen=True)
class _Concatenation:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _Reference | _Characters | _Concatenation | _Choice | _Repeat


def gbnf_to_lark(text: str) -> str:
    """The same grammar for llguidance.

    Rules that don't contain themselves become terminals, so that a grammar without recursion is one regular expression and
    no border between two of its parts can be read in a wrong way. GbnfError for what is no GBNF.
    """
    rules = _Parser(text).rules()
    recursive = {name for name in rules if name in _reached(rules, rules[name])}
    while more := {n for n in rules if n not in recursive and recursive & _reached(rules, rules[n])}:
        recursive |= more
    names = {name: f"r{i}" if name in recursive else f"T{i}" for i, name in enumerate(rules)}
    lines = ["%llguidance {}", f"start: {names['root']}"]
    lines += [f"{names[name]}: {_lark(node, names)}" for name, node in rules.items()]
    return "\n".join(lines) + "\n"


def _children(node: _Node) -> tuple[_Node, ...]:
    if isinstance(node, (_Concatenation, _Choice)):
        return node.parts
    return (node.part,) if isinstance(node, _Repeat) else ()


def _references(node: _Node) -> Iterator[_Reference]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Reference):
            yield node
        waiting += _children(node)


def _reached(rules: dict[str, _Node], node: _Node) -> set[str]:
    """Names of all rules that a node uses, by way of others too."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for reference in _references(waiting.pop()):
            if reference.name not in found:
                found.add(reference.name)
                waiting.append(rules[reference.name])
    return found


def _lark(node: _Node, names: dict[str, str]) -> str:
    if isinstance(node, _Reference):
        return names[node.name]
    if isinstance(node, _Characters):
        return f"/{node.regex}/" if node.regex else '""'
    if isinstance(node, _Concatenation):
        return " ".join(_lark(part, names) for part in node.parts) or '""'
    if isinstance(node, _Choice):
        return "(" + " | ".join(_lark(part, names) for part in node.parts) + ")"
    marks = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if node.most is None else node.most
    return f"({_lark(node.part, names)}){marks.get((node.least, node.most), f'{{{node.least},{most}}}')}"


def escaped(character: str) -> str:
    """A regular expression that matches this character."""
    return character if character.isascii() and character.isalnum() else f"\\u{{{ord(character):x}}}"


class _Parser:
    """Recursive descent, as llama.cpp reads it. A line that begins with | goes on with the rule before it."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def rules(self) -> dict[str, _Node]:
        """Rule by name; all that are named are there, "root" among them."""
        rules: dict[str, _Node] = {}
        self._blanks(lines=True)
        while self._next():
            name = self._name()
            self._blanks()
            self._expect("::=")
            self._blanks(lines=True)
            rules[name] = self._choice(lines=False)
            if self._next() not in ("", "\r", "\n"):
                raise self._error(f"{self._next()!r} is not expected here")
            self._blanks(lines=True)
        for node in rules.values():
            for reference in _references(node):
                if reference.name not in rules:
                    raise self._error(f"there is no rule {reference.name!r}", reference.at)
        if "root" not in rules:
            raise GbnfError("there is no rule 'root', where every grammar begins")
        return rules

    def _choice(self, lines: bool) -> _Node:
        parts = [self._sequence(lines)]
        while self._continues(lines):
            self.at += 1
            self._blanks(lines=True)
            parts.append(self._sequence(lines))
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _continues(self, lines: bool) -> bool:
        """Whether a | comes, on a later line too."""
        before = self.at
        self._blanks(lines=True)
        if self._next() == "|":
            return True
        if not lines:
            self.at = before
        return False

    def _sequence(self, lines: bool) -> _Node:
        parts: list[_Node] = []
        while True:
            self._blanks(lines)
            node = self._item()
            if node is None:
                return parts[0] if len(parts) == 1 else _Concatenation(tuple(parts))
            self._blanks(lines)
            while repeated := self._repeat(node):
                node = repeated
                self._blanks(lines)
            parts.append(node)

    def _item(self) -> _Node | None:
        start = self._next()
        if start == '"':
            return self._literal()
        if start == "[":
            return self._class()
        if start == ".":
            self.at += 1
            return _Characters(f"[\\u{{0}}-\\u{{{_LARGEST:x}}}]")
        if start == "(":
            opened, self.at, self.depth = self.at, self.at + 1, self.depth + 1
            if self.depth > 100:
                raise self._error("more than 100 parentheses within each other", opened)
            inner = self._choice(lines=True)
            if self._next() != ")":
                raise self._error("this '(' is not closed", opened) if not self._next() else self._error("expected ')'")
            self.at, self.depth = self.at + 1, self.depth - 1
            return inner
        if start in ("<", "!"):
            raise self._error("tokens in a grammar (<...>) are not supported: write their text")
        if _is_word(start):
            at = self.at
            return _Reference(self._name(), at)
        return None

    def _repeat(self, node: _Node) -> _Node | None:
        mark = self._next()
        limits: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if mark in limits:
            self.at += 1
            return _Repeat(node, *limits[mark])
        if mark != "{":
            return None
        opened, self.at = self.at, self.at + 1
        least: int | None = self._number()
        most = least
        if self._next() == ",":
            self.at += 1
            most = self._number()
        self._blanks(lines=True)
        if least is None and most is None:
            raise self._error("expected a number")
        self._expect("}")
        if most is not None and most < (least or 0):
            raise self._error(f"{{{least},{most}}}: the most is below the least", opened)
        return _Repeat(node, least or 0, most)

    def _number(self) -> int | None:
        self._blanks(lines=True)
        start = self.at
        while self._next().isascii() and self._next().isdigit():
            self.at += 1
        digits = self.text[start : self.at]
        self._blanks(lines=True)
        if len(digits) > 6 or int(digits or 0) > _MOST:
            raise self._error(f"repeated more than {_MOST:,} times", start)
        return int(digits) if digits else None

    def _literal(self) -> _Node:
        opened, self.at, out = self.at, self.at + 1, ""
        while self._next() != '"':
            out += escaped(self._character(opened))
        self.at += 1
        return _Characters(out)

    def _class(self) -> _Node:
        opened, self.at, out = self.at, self.at + 1, "["
        if self._next() == "^":
            self.at, out = self.at + 1, "[^"
        empty = True
        while self._next() != "]":
            at = self.at
            first = self._character(opened)
            out, empty = out + escaped(first), False
            if self._next() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self._character(opened)
                if last < first:
                    raise self._error("this range ends before it begins", at)
                out += f"-{escaped(last)}"
        self.at += 1
        if empty:
            raise self._error("these brackets hold no character", opened)
        return _Characters(out + "]")

    def _character(self, opened: int) -> str:
        character = self._next()
        if not character:
            raise self._error(f"this {self.text[opened]} is not closed", opened)
        if character != "\\":
            self.at += 1
            return character
        kind = self.text[self.at + 1 : self.at + 2]
        if kind in _SIMPLE:
            self.at += 2
            return _SIMPLE[kind]
        digits = self.text[self.at + 2 : self.at + 2 + _HEX.get(kind, 0)]
        if kind not in _HEX:
            allowed = r"\n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH"
            raise self._error(f"{character + kind!r} is no escape: there are {allowed}")
        if len(digits) < _HEX[kind] or not all(d in "0123456789abcdefABCDEF" for d in digits):
            raise self._error(f"\\{kind} needs {_HEX[kind]} hexadecimal digits")
        value = int(digits, 16)
        if value > _LARGEST or 0xD800 <= value < 0xE000:
            raise self._error(f"\\{kind}{digits} is no character")
        self.at += 2 + _HEX[kind]
        return chr(value)

    def _name(self) -> str:
        start = self.at
        while _is_word(self._next()):
            self.at += 1
        if start == self.at:
            raise self._error(
                f"expected the name of a rule, not {self._next()!r}" if self._next() else "expected a rule"
            )
        return self.text[start : self.at]

    def _expect(self, text: str) -> None:
        if not self.text.startswith(text, self.at):
            raise self._error(f"expected {text!r}")
        self.at += len(text)

    def _blanks(self, lines: bool = False) -> None:
        """Skip blanks and comments, and line breaks where they may be."""
        while (character := self._next()) and (character in " \t#" or (lines and character in "\r\n")):
            self.at += 1
            if character == "#":
                while self._next() not in ("", "\r", "\n"):
                    self.at += 1

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

    def _error(self, problem: str, at: int | None = None) -> GbnfError:
        at = self.at if at is None else at
        line, column = self.text.count("\n", 0, at) + 1, at - (self.text.rfind("\n", 0, at) + 1) + 1
        return GbnfError(f"line {line}, column {column}: {problem}")


def _is_word(character: str) -> bool:
    return bool(character) and ((character.isascii() and character.isalnum()) or character in "-_")
