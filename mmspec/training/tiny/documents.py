"""Tasks without a picture: quote from a ledger or a real text, repeat, tell a story."""

from functools import cache
from random import Random

from mmspec.training.tiny.sample import Sample, nowhere
from mmspec.training.tiny.words import GOODS, PLACES, VERBS, Words, is_held_out


def _entries(words: Words, num_chars: int) -> dict[str, str]:
    """Ledger entries by number; some numbers differ from an earlier one in one digit only."""
    rng = words.rng
    entries: dict[str, str] = {}
    length = 0
    while length < num_chars or len(entries) < 2:
        number = str(rng.randint(10000, 99999))
        if entries and rng.random() < 0.1:
            digits = list(rng.choice(list(entries)))
            digits[rng.randrange(1, 5)] = str(rng.randint(0, 9))
            number = "".join(digits)
        if number in entries:
            continue
        goods, count = words.thing(GOODS, 0.3), rng.randint(2, 99)
        text = f"{words.name()} {rng.choice(VERBS)} {count} {goods}"
        draw = rng.random()
        if draw < 0.6:
            text += f" to {words.name()}"
        if draw < 0.35:
            text += f" for {rng.randint(2, 999)} coins"
        elif draw > 0.75:
            text += f" in {words.name()}"
        if rng.random() < 0.25:
            text += f", {rng.choice(('paid', 'unpaid', 'half paid', 'to be checked'))}"
        entries[number] = f"Entry {number}: {text}."
        length += len(entries[number]) + 1
    return entries


def quote(rng: Random, held_out: bool = False, num_chars: int = 400) -> Sample:
    """Quote one entry of a ledger of about `num_chars` characters."""
    entries = _entries(Words(rng, held_out), num_chars)
    document = "".join(entry + "\n" for entry in entries.values())
    number, answer = rng.choice(list(entries.items()))
    prompt = f"{document}Quote Entry {number}"
    key = len("Entry 12345")
    asked, start = len(prompt) - key, document.index(answer)
    source = (*range(asked, asked + key), *range(start + key, start + len(answer) + 1))
    return Sample("quote", prompt, answer, source, nowhere(answer))


@cache
def _real_lines() -> tuple[list[str], list[str]]:
    """Lines of Python's own help topics: (training, held out)."""
    from pydoc_data.topics import topics

    lines = [
        " ".join(line.split())
        for name in sorted(topics)
        for line in topics[name].splitlines()
        if line.isascii()
    ]
    lines = [line for line in lines if 20 <= len(line) <= 100]
    return [x for x in lines if not is_held_out(x)], [x for x in lines if is_held_out(x)]


def passage(rng: Random, held_out: bool = False, num_chars: int = 400) -> Sample:
    """Quote the line of a real text that begins with the given words."""
    pool = _real_lines()[held_out]
    first = rng.randrange(len(pool))
    lines: list[str] = []
    while sum(len(line) for line in lines) < num_chars:
        line = pool[(first + len(lines)) % len(pool)]
        lines.append(line)
    document = "".join(line + "\n" for line in lines)
    answer = rng.choice([line for line in lines if document.count(line[:14]) == 1] or lines[:1])
    key = min(len(answer) - 1, rng.randint(14, 20))
    prompt = f"{document}Quote the line: {answer[:key]}"
    asked, start = len(prompt) - key, document.index(answer)
    source = (*range(asked, asked + key), *range(start + key, start + len(answer) + 1))
    return Sample("passage", prompt, answer, source, nowhere(answer))


def repeat(rng: Random, held_out: bool = False, num_chars: int = 96) -> Sample:
    """Repeat a random string: the plainest copying, from which the others grow."""
    alphabet = rng.sample([chr(code) for code in range(32, 127)], rng.randint(10, 90))
    answer = "".join(rng.choice(alphabet) for _ in range(rng.randint(16, num_chars)))
    lead = "Repeat: "
    prompt = lead + answer
    source = tuple(range(len(lead), len(prompt) + 1))
    return Sample("repeat", prompt, answer, source, nowhere(answer))


def story(rng: Random, held_out: bool = False) -> Sample:
    """A short story in a narrow style, for which there is no one right answer."""
    words = Words(rng, held_out)
    hero, friend = words.name(), words.name()
    opening = f"{hero} lived near the old {rng.choice(PLACES)}."
    rest = [
        f"One {rng.choice(('morning', 'evening', 'winter', 'summer'))} {hero} met {friend}.",
        f"They {rng.choice(VERBS)} {words.thing(GOODS, 0.1)} and {words.thing(GOODS, 0.1)} at the "
        f"{rng.choice(PLACES)}.",
        f'"{rng.choice(("I like", "I need", "We lost", "Where is"))} the '
        f'{words.thing(GOODS, 0.1)}," said {rng.choice((hero, friend))}.',
        f"{friend} {rng.choice(('laughed', 'wondered', 'waited', 'ran home'))}.",
    ]
    answer = " ".join([opening, *rng.sample(rest, rng.randint(2, 4))])
    prompt = f"Tell a story about {hero} and {friend}."
    return Sample("story", prompt, answer, nowhere(answer), nowhere(answer))
