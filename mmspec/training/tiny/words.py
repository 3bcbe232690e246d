"""Words for the procedural data, split so that what is evaluated was never trained on.

Every name and thing, invented or real, belongs to the training or to the held-out side by a
checksum of its letters, so that the split needs no list and holds for any seed. Verbs and places
are a closed set that both sides share.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _listed("b d f g h j k l m n p r s t v w z br dr gl kr pl sk st tr th sh ch")
_VOWELS = _listed("a e i o u a e i o ai ea io ou")
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "st"]

ITEMS = _listed("""
apple apricot bagel banana barley basil beans beer beet berries biscuit bread broccoli
butter cabbage cake candle candy carrot cashew celery cereal cheese cherry chili chips chives
cider cocoa coconut coffee cookie corn crackers cream cress cumin curry dates dill eggs fennel figs
flour garlic ginger granola grapes ham honey jam juice kale ketchup kiwi lamb leek lemon lentils
lettuce lime macaroni mango maple melon milk mint muffin mushroom mustard napkins noodles nuts oats
olives onion orange oregano paper parsley pasta peach peanuts pear peas pepper pickle pie plum
popcorn pork potato prawns pretzel pumpkin quinoa radish raisins relish rice rolls rosemary rye
saffron sage salad salami salmon salt sauce sausage seeds soap soda soup spinach squash sugar syrup
tacos tea thyme toast tofu tomato towels tuna turkey turnip vanilla vinegar waffle walnut water
wheat wine yam yeast yogurt zucchini
""")
GOODS = _listed("""
amber anchors axes barrels baskets bells blankets boots bottles bowls boxes bricks
brooms buckets cables candles canvas carpets chains chairs clay clocks cloth coal combs copper cork
cotton crates cups dyes feathers felt flax flour gears glass gloves glue grain hammers hats hay
hemp hides hinges hooks horns ink iron ivory jars kettles keys knives lace ladders lamps lanterns
leather lenses linen locks looms maps marble masks mirrors nails needles nets oars oil paint paper
pearls pens pipes plates ploughs pots pulleys quills rails reeds ribbons rings ropes rugs sacks
saddles sails salt sand saws scales seeds shawls shells shovels silk silver skins slate soap spades
spices spoons springs steel stone straw string tar tea tents thread tiles timber tin tools torches
twine velvet wagons wax wheels whistles wicks wire wool
""")
VERBS = _listed("""
sold bought lent gave sent brought owed returned shipped traded offered promised
delivered ordered counted packed repaired stored
""")
PLACES = _listed("""
market harbour mill station bakery library bridge garden workshop school tower farm
chapel theatre kiosk pharmacy depot tavern museum quarry
""")


def is_held_out(word: str) -> bool:
    """Whether a word belongs to the tenth of all words that training never shows."""
    return zlib.crc32(word.lower().encode()) % 10 == 0


@dataclass(frozen=True)
class Words:
    """Draws words of one side of the split from one random stream, for one sample.

    Names and things never come twice: what stands before a character then tells where it stands,
    within the few characters that a model this small looks back.
    """

    rng: Random
    held_out: bool = False
    used: set[str] = field(default_factory=set)

    def invented(self, max_syllables: int = 3) -> str:
        """A pronounceable word that is in no dictionary, such as "brelost"."""
        rng = self.rng
        while True:
            word = ""
            for _ in range(rng.randint(1, max_syllables)):
                word += rng.choice(_ONSETS) + rng.choice(_VOWELS)
            word += rng.choice(_CODAS)
            if 3 <= len(word) <= 10 and self._take(word):
                return word

    def name(self) -> str:
        """An invented proper name."""
        return self.invented(2).capitalize()

    def thing(self, words: Sequence[str], invented: float = 0.5) -> str:
        """A real word, or an invented one in the given share of draws: copying must not rely on
        knowing the word."""
        if self.rng.random() >= invented:
            for _ in range(20):
                word = self.rng.choice(words)
                if self._take(word):
                    return word
        return self.invented()

    def _take(self, word: str) -> bool:
        if word in self.used or is_held_out(word) != self.held_out:
            return False
        self.used.add(word)
        return True
