"""Inputs: text, chat messages, images, videos and audio as users give them -> Prompt. Opening and
checking media, the chat template, control tokens in user text, the model's own processor."""

from mmspec.inputs.audio import AudioSource, open_audio
from mmspec.inputs.control_tokens import ControlMode, neutralise
from mmspec.inputs.images import ImageSource, open_image
from mmspec.inputs.limits import InputLimits
from mmspec.inputs.messages import Conversation, Message, build_conversation
from mmspec.inputs.passages import Passage, Passages
from mmspec.inputs.pdf import PdfPage, pdf_pages
from mmspec.inputs.prepared import from_inputs
from mmspec.inputs.processor import InputProcessor
from mmspec.inputs.spans import find_spans
from mmspec.inputs.videos import VideoSource, open_video

__all__ = [
    "AudioSource",
    "ControlMode",
    "Conversation",
    "ImageSource",
    "InputLimits",
    "InputProcessor",
    "Message",
    "Passage",
    "Passages",
    "PdfPage",
    "VideoSource",
    "build_conversation",
    "find_spans",
    "from_inputs",
    "neutralise",
    "open_audio",
    "open_image",
    "open_video",
    "pdf_pages",
]
