"""The task without one right answer: a short story in a narrow style."""

import re
from random import Random

from mmspec.training.tiny.sample import NOWHERE, Sample, nowhere
from mmspec.training.tiny.words import GOODS, PLACES, VERBS, Words


def story(rng: Random, held_out: bool = False) -> Sample:
    """A short story in a narrow style, for which there is no one right answer.

    Sentences keep one order, so that the last one tells how far the story is, and the closing
    ones never stand elsewhere, so that the end is learned too.
    """
    words = Words(rng, held_out)
    hero, friend = words.name(), words.name()
    who, both = rng.choice((hero, friend)), rng.choice((hero, friend, "They"))
    place, there = rng.choice(PLACES), rng.choice(PLACES)
    one, other = words.thing(GOODS, 0), words.thing(GOODS, 0)
    time = rng.choice(("morning", "evening", "winter", "summer"))
    wish = rng.choice(("I like", "I need", "We lost", "Where are", "Look at", "Keep"))
    sentences = [
        rng.choice((f"{hero} lived near the old {place}.", f"{hero} worked at the {place}.")),
        rng.choice(
            (f"One {time} {hero} met {friend}.", f"One {time} {friend} came to the {there}.")
        ),
    ]
    middle = [
        rng.choice(
            (
                f"They {rng.choice(VERBS)} {one} and {other}.",
                f"{who} {rng.choice(VERBS)} {rng.randint(2, 99)} {one}.",
                f"They found {one} under the {rng.choice(PLACES)}.",
            )
        ),
        f'"{wish} the {rng.choice((one, other))}," said {who}.',
        f"{both} {rng.choice(('laughed', 'wondered', 'waited', 'sang', 'danced'))}.",
    ]
    sentences += [sentence for sentence in middle if rng.random() < 0.75]
    sentences.append(
        rng.choice(
            (
                f"At night {hero} went home.",
                f"Then {hero} and {friend} went home.",
                f"{hero} never came back.",
                "They are friends to this day.",
            )
        )
    )
    answer = " ".join(sentences)
    prompt = f"Tell a story about {hero} and {friend}."
    source = [NOWHERE] * (len(answer) + 1)
    for name in (hero, friend):
        start = prompt.index(name)
        for match in re.finditer(rf"\b{name}\b", answer):
            source[match.start() : match.end()] = range(start, start + len(name))
    return Sample("story", prompt, answer, tuple(source), nowhere(answer))
