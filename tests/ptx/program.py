"""The text of one compiled kernel (PTX), read into instructions."""

import re
from dataclasses import dataclass

_KINDS = {"pred": "p", "b16": "rs", "b32": "r", "b64": "rd"}
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_REGISTER = re.compile(r"%(p|rs|r|rd)(\d+)$")


@dataclass(frozen=True)
class Register:
    kind: str  # p: predicate, rs: 16 bits, r: 32, rd: 64
    index: int


@dataclass(frozen=True)
class Number:
    bits: int  # two's complement, or those of a float


@dataclass(frozen=True)
class Address:
    base: "Register | str | Number"  # str: a parameter, or the symbol of shared memory
    offset: int


@dataclass(frozen=True)
class Special:
    name: str  # tid.x and the like


Operand = Register | Number | Address | Special | str | tuple["Operand", ...]


@dataclass(frozen=True)
class Instruction:
    name: str  # with its suffixes: add.s32
    operands: tuple[Operand, ...]
    guard: Register | None  # executed by threads for which it is true,
    is_negated: bool  # or false
    text: str

    @property
    def parts(self) -> list[str]:
        return self.name.replace("::", "..").split(".")


@dataclass(frozen=True)
class Program:
    name: str
    parameters: dict[str, int]  # their places, by name
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # the instruction behind each
    registers: dict[str, int]  # how many there are of a kind
    threads: int
    waits: bool  # for the kernel ahead, which may not have ended

    @classmethod
    def of(cls, ptx: str) -> "Program":
        ptx = re.sub(r"//[^\n]*", "", ptx)
        head, _, rest = ptx.partition(".reqntid")
        entry = re.search(r"\.entry\s+(\w+)\s*\(", head)
        assert entry is not None
        names = re.findall(r"\.param\s[^,)]*?(\w+_param_\d+)", head)
        threads = int(rest.split("\n", 1)[0].split(",")[0])
        body = rest.split("{", 1)[1]
        body = body[: body.index("$L__func_end")]
        instructions, labels, registers = [], dict[str, int](), dict.fromkeys(_KINDS.values(), 0)
        for kind, count in re.findall(r"\.reg\s+\.(\w+)\s+%\w+<(\d+)>;", body):
            registers[_KINDS[kind]] = int(count)
        # A scope's registers only drop what comes there.
        body = re.sub(r"\{\s*\.reg[^;]*;", "", body)
        body = re.sub(r"^\s*\.(loc|reg|pragma)\b.*$", "", body, flags=re.MULTILINE)
        for piece in re.split(r";|(?<=:)\s*\n", body):
            one = piece.lstrip("} \n\t").strip()
            while label := re.match(r"(\$\w+):\s*", one):
                labels[label[1]] = len(instructions)
                one = one[label.end() :]
            if one:
                instructions.append(_instruction(one))
        waits = any(one.name == "griddepcontrol.wait" for one in instructions)
        places = {name: place for place, name in enumerate(names)}
        return cls(entry[1], places, tuple(instructions), labels, registers, threads, waits)


def _instruction(text: str) -> Instruction:
    found = _STATEMENT.match(text)
    assert found is not None, text
    negated, guard, name, rest = found.groups()
    own = _operand(guard) if guard else None
    assert own is None or isinstance(own, Register)
    operands = tuple(_operand(one) for one in _split(rest))
    return Instruction(name, operands, own, bool(negated), " ".join(text.split()))


def _split(text: str) -> list[str]:
    """At the commas between operands."""
    found, depth = [""], 0
    for char in text:
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [one.strip() for one in found if one.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_operand(one.strip()) for one in text[1:-1].split(","))
    if text.startswith("["):
        base, _, offset = text[1:-1].partition("+")
        inner = _operand(base.strip())
        assert isinstance(inner, Register | str | Number), text
        return Address(inner, int(offset.strip(), 0) if offset else 0)
    if "|" in text:
        return tuple(_operand(one) for one in text.split("|"))
    if register := _REGISTER.match(text):
        return Register(register[1], int(register[2]))
    if text.startswith("%"):
        return Special(text[1:])
    if re.match(r"0[fFdD][0-9a-fA-F]+$", text):
        return Number(int(text[2:], 16))
    if re.match(r"-?\d", text):
        return Number(int(text.rstrip("U"), 0))
    return text
