"""What a target reads of a datastore's documents, so that they are found by its hidden states.

1. `windows`    text: several windows of documents in one forward
2. `prompted`   documents that are answers to prompts of their own, with images
3. `records`    such prompts, from JSONL
4. `collect`    reader -> keys -> the datastore's dense index, resumable
"""

from mmspec.indexing.collect import MixedReader, Progress, Reader, collect_keys
from mmspec.indexing.prompted import PromptedReader
from mmspec.indexing.records import RecordPrompts
from mmspec.indexing.windows import TextReader, answer_lead

__all__ = [
    "MixedReader",
    "Progress",
    "PromptedReader",
    "Reader",
    "RecordPrompts",
    "TextReader",
    "answer_lead",
    "collect_keys",
]
