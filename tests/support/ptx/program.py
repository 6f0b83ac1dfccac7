"""A kernel's PTX as instructions. Sections 4 and 5 of NVIDIA's PTX ISA, as far as Triton's backend and inline code go."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_COMMENT = re.compile(r"//.*")
_LABEL = re.compile(r"^(\$?\w+):$")
_INSTRUCTION = re.compile(r"^(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_PARAMETER = re.compile(r"\.param \.(\w+) [^,)]*?(\w+)(?=[,\n])")


@dataclass(frozen=True)
class Address:
    """What stands in brackets: a register's or a name's value, and bytes added to it."""

    base: str
    offset: int = 0


# a register or a name; the bits of a number; several of them in braces; an address
Operand = str | int | Address | tuple["Operand", ...]


@dataclass(frozen=True)
class Instruction:
    """unless: its predicate has to be false. text: as it stands in the file."""

    name: str
    operands: tuple[Operand, ...]
    predicate: str | None
    unless: bool
    text: str

    @property
    def parts(self) -> list[str]:
        """Of the name."""
        return self.name.split(".")


@dataclass(frozen=True)
class Program:
    """parameters: (name, type) in order. labels: the instructions that they stand before. threads: of a block, 0 where the text
    doesn't say."""

    parameters: tuple[tuple[str, str], ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    threads: int


def parsed(text: str) -> Program:
    """The one kernel of a module. Raises ValueError for what isn't an instruction."""
    text = _COMMENT.sub("", text)
    head, body = text[text.index(".entry") :].split("\n{", 1)
    threads = re.search(r"\.reqntid (\d+)", head)
    labels, instructions, scope = {}, list[Instruction](), 0
    lines = iter(body.splitlines())
    for line in lines:
        line = line.strip()
        if line.startswith(".section"):  # what debuggers read
            break
        scope += line == "{"  # inline code declares labels of its own, again and again
        if (label := _LABEL.match(line)) is not None:
            labels[_scoped(label[1], scope)] = len(instructions)
        elif line and line not in "{}" and not line.startswith("."):
            while ";" not in line:
                line += " " + next(lines).strip()
            instructions += [_instruction(each.strip(), scope) for each in line.split(";") if each.strip()]
    parameters = tuple((name, type_) for type_, name in _PARAMETER.findall(head))
    return Program(parameters, tuple(instructions), labels, int(threads[1]) if threads else 0)


def _scoped(label: str, scope: int) -> str:
    return label if label[0] == "$" else f"{label} {scope}"


def _instruction(text: str, scope: int) -> Instruction:
    found = _INSTRUCTION.match(text)
    if found is None:
        raise ValueError(f"no instruction: {text!r}")
    operands = tuple(map(_operand, _separated(found[4])))
    if found[3].startswith("bra"):
        operands = (_scoped(found[4].strip(), scope),)
    return Instruction(found[3], operands, found[2], found[1] == "!", text)


def _separated(text: str) -> list[str]:
    """At commas outside of braces and brackets."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [each.strip() for each in found if each.strip()]


def _operand(text: str) -> Operand:
    if text[0] == "{":
        return tuple(map(_operand, _separated(text[1:-1])))
    if text[0] == "[":
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(base, int(offset or 0))
    if text[:2] in ("0f", "0F"):
        return int(text[2:], 16)
    if text[:2] in ("0d", "0D"):
        return int(text[2:], 16)
    if text[0].isdigit() or text[0] == "-":
        return int(text.rstrip("U"), 0)
    return text


def unsigned(register: str) -> type[np.generic]:
    """What a register's bits are kept as, by its name, as LLVM chooses it; those that inline code declares are predicates."""
    if register[0] != "%":
        return np.bool_
    for begin, kept in (("%p", np.bool_), ("%rs", np.uint16), ("%rd", np.uint64), ("%r", np.uint32)):
        if register.startswith(begin):
            return kept
    raise ValueError(f"no register: {register}")


# what a register's or a number's bits are kept as, by their bytes
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def unknown(instruction: Instruction) -> ValueError:
    """Not a fault of the program's: nothing here runs such an instruction."""
    return ValueError(f"an instruction that isn't known: {instruction.text}")
