"""The tasks of the bundled model: each turns a random stream into one question and its answer.

    sample = receipt(Random(7), held_out=True)
    sample.image, sample.prompt_text, sample.answer

Every answer is an induction (it begins with something the prompt or the page fixes, then goes on
at one place of the source) with a determined end, and says for each of its characters where it
comes from. Training uses those places to guide attention; nothing else needs them.
"""

from mmspec.training.tiny.documents import needle, passage, quote, repeat, span
from mmspec.training.tiny.form import extract
from mmspec.training.tiny.pictures import caption, chart, count, receipt, scan
from mmspec.training.tiny.sample import NOWHERE, Sample
from mmspec.training.tiny.story import story

__all__ = [
    "NOWHERE",
    "TASKS",
    "Sample",
    "caption",
    "chart",
    "count",
    "extract",
    "needle",
    "passage",
    "quote",
    "receipt",
    "repeat",
    "scan",
    "span",
    "story",
]

TASKS = {
    "receipt": receipt,
    "scan": scan,
    "chart": chart,
    "caption": caption,
    "count": count,
    "quote": quote,
    "needle": needle,
    "passage": passage,
    "span": span,
    "extract": extract,
    "repeat": repeat,
    "story": story,
}
