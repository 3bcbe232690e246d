"""Reading: what of a model's answer is its reasoning, what is said, and what calls tools.

    answer = engine.answer(messages, tools=tools)  # of one prompt, whole

    for piece in engine.stream_answer(messages, tools=tools):  # as it comes
        print(piece, piece.is_reasoning)

    reading = Reading(engine.inputs, engine.prepare(messages, tools=tools))  # of others too
    answers = [reading.answer(one) for one in engine.generate(reading.request).samples]

forms      how the families write it: transformers' response templates, as data
form       the form of one model
regions    transformers' parser of them, which here loses no text
calls      ToolCall, and what is one
bare_call  a call that is the whole answer, without any mark
reader     AnswerReader: the parts of an answer, as it comes
reading    Reading: how one request's answers are read
stream     AnswerPieces: the pieces of a stream, by what they are and who drafted them
"""

from mmspec.reading.calls import ToolCall
from mmspec.reading.reader import AnswerReader, Part, Reasoning
from mmspec.reading.reading import Answer, Guide, Reading, Thought
from mmspec.reading.stream import AnswerPieces

__all__ = [
    "Answer",
    "AnswerPieces",
    "AnswerReader",
    "Guide",
    "Part",
    "Reading",
    "Reasoning",
    "Thought",
    "ToolCall",
]
