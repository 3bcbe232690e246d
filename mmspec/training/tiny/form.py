"""The task of extracting a field from a form as JSON."""

from random import Random

from mmspec.training.tiny.documents import ledger_entries
from mmspec.training.tiny.sample import NOWHERE, Sample, nowhere
from mmspec.training.tiny.words import GOODS, Words

FIELDS = {  # field of a form -> what kind of value it has
    "name": "name",
    "agent": "name",
    "city": "name",
    "street": "name",
    "ship": "name",
    "date": "date",
    "due": "date",
    "arrival": "date",
    "price": "number",
    "phone": "number",
    "weight": "number",
    "tax": "number",
    "goods": "goods",
    "gift": "goods",
    "code": "code",
    "permit": "code",
}


def _field_value(kind: str, words: Words) -> str:
    rng = words.rng
    if kind == "name":
        return f"{words.name()} {words.name()}" if rng.random() < 0.5 else words.name()
    if kind == "date":
        return f"{rng.randint(2019, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if kind == "number":
        return str(rng.randint(0, 10 ** rng.randint(2, 7)))
    if kind == "goods":
        return f"{rng.randint(2, 99)} {words.thing(GOODS, 0.4)}"
    return f"{words.invented()[:3].upper()}-{rng.randint(100, 99999)}"


def extract(rng: Random, held_out: bool = False, num_chars: int = 400) -> Sample:
    """Give one field of a form, whose lines stand between those of a ledger, as JSON."""
    words = Words(rng, held_out)
    names = rng.sample(list(FIELDS), rng.randint(5, 9))
    fields = {name: _field_value(FIELDS[name], words) for name in names}
    form = [f"{name}: {value}" for name, value in fields.items()]
    rest = num_chars - sum(len(line) + 1 for line in form)
    lines = list(ledger_entries(words, rest).values()) if rest > 100 else []
    for line in form:
        lines.insert(rng.randint(0, len(lines)), line)
    name = rng.choice(names)
    document = "".join(line + "\n" for line in lines)
    prompt = f"{document}Extract as JSON: {name}"
    lead, value = f'{{"{name}": "', fields[name]
    asked = len(prompt) - len(name)
    start = (f"\n{document}").index(f"\n{name}: ") + len(f"{name}: ")
    source = (
        *(NOWHERE,) * len('{"'),
        *range(asked, asked + len(name)),
        *(NOWHERE,) * len('": "'),
        *range(start, start + len(value) + 1),  # the closing quote comes from the line's end
        *(NOWHERE,) * len("}$"),
    )
    answer = f'{lead}{value}"}}'
    return Sample("extract", prompt, answer, source, nowhere(answer))
