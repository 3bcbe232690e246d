"""What a target reads of a datastore's documents, so that they are found by hidden states."""

from mmspec.indexing.collect import Progress, Reader, collect_keys
from mmspec.indexing.prompted import PromptedReader
from mmspec.indexing.windows import TextReader

__all__ = ["Progress", "PromptedReader", "Reader", "TextReader", "collect_keys"]
