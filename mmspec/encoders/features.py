"""Features of media by what was encoded: kept over requests, and handed to the model in place of
its own `get_image_features` and the like for the time of one forward.

A forward over a part of a prompt is handed the features of that part's placeholders alone, which
is what lets media fall into any chunk.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmspec.encoders.company import Company
from mmspec.encoders.media import Media, MediaItem, join
from mmspec.encoders.outputs import FeatureError, Features, split_output
from mmspec.state import MediaKind

METHODS: dict[MediaKind, str] = {
    "image": "get_image_features",
    "video": "get_video_features",
    "audio": "get_audio_features",
}


def gives_features(model: nn.Module) -> bool:
    """Whether the model, or a part of it, has a method for them; others encode within forward."""
    return any(hasattr(type(part), name) for part in model.modules() for name in METHODS.values())


@dataclass(frozen=True)
class FeatureInfo:
    """What a feature cache holds."""

    num_entries: int
    num_bytes: int
    max_bytes: int


class FeatureCache:
    """Features by namespace, weights and the item's digest, bounded in bytes; the least recently
    used go first. Can be used from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, Hashable, bytes], Features] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, namespace: str, weights: Hashable, digest: bytes) -> Features | None:
        with self._lock:
            key = (namespace, weights, digest)
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, namespace: str, weights: Hashable, digest: bytes, features: Features) -> None:
        key = (namespace, weights, digest)
        with self._lock:
            if features.num_bytes > self.max_bytes or key in self._entries:
                return
            self._entries[key] = features
            self._num_bytes += features.num_bytes
            while self._num_bytes > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def clear(self, namespace: str | None = None) -> None:
        """Drops all there is, or one namespace's."""
        with self._lock:
            for key in [k for k in self._entries if namespace is None or k[0] == namespace]:
                self._num_bytes -= self._entries.pop(key).num_bytes

    @property
    def info(self) -> FeatureInfo:
        with self._lock:
            return FeatureInfo(len(self._entries), self._num_bytes, self.max_bytes)


@dataclass
class FeatureSource:
    """Where one request's features come from. Counts what was encoded for it.

    With a cache, `namespace` and `weights` say what of it the request may find. Without one an
    item's features are still kept until the end of its prefill, for a chunk may need only a part.
    `company`: what was seen of the model's encoders.
    """

    media: Media
    cache: FeatureCache | None = None
    namespace: str = ""
    weights: Hashable = None
    company: Company = field(default_factory=Company)
    num_encoded: int = 0
    _own: dict[bytes, Features] = field(default_factory=dict)

    @contextmanager
    def attached(
        self, model: nn.Module, placeholders: Mapping[MediaKind, tuple[int, int]]
    ) -> Iterator[None]:
        """Within it `model` takes the features of these placeholders from here. Its own methods
        are back afterwards, also after an error. Not for two threads at once.

        Raises FeatureError where they are a part of a medium that it does not ask for: it would
        have read them as text."""
        attachment = _Attachment(self, model, placeholders)
        found = [
            (module, METHODS[kind], kind)
            for module in model.modules()
            for kind in placeholders
            if hasattr(type(module), METHODS[kind])
        ]
        if {kind for *_, kind in found} != placeholders.keys():
            found = []  # a kind without a method may be another's to encode (Perception LM)
        partial = {kind for kind, p in placeholders.items() if self.is_partial(kind, *p)}
        if not found and partial:
            raise FeatureError("the model has no method that gives features")
        if not found:  # it encodes them within its forward
            self.num_encoded += sum(
                len(self.media.needed(kind, *place)) for kind, place in placeholders.items()
            )
        before = [vars(module).get(name) for module, name, _ in found]
        try:
            for module, name, kind in found:
                setattr(module, name, attachment.in_place_of(getattr(module, name), kind))
            try:
                yield
            except UnboundLocalError:
                if not partial - attachment.asked:  # Aria's of 5.17 has no name for them then
                    raise
            if partial - attachment.asked:  # Aria's forward, of one token alone
                raise FeatureError("the model does not look for media in each part of a prompt")
        finally:
            for (module, name, _), old in zip(found, before, strict=True):
                vars(module).pop(name, None)
                if old is not None:
                    setattr(module, name, old)

    def is_partial(self, kind: MediaKind, start: int, stop: int) -> bool:
        items = self.media.needed(kind, start, stop)
        return (items[0].start, items[-1].stop) != (start, stop)

    def find(self, item: MediaItem) -> Features | None:
        if item.digest not in self._own and self.cache is not None:
            known = self.cache.get(self.namespace, self.weights, item.digest)
            if known is not None:
                self._own[item.digest] = known
        return self._own.get(item.digest)

    def keep(self, item: MediaItem, features: Features) -> None:
        self._own[item.digest] = features

    def share(self) -> None:
        """Later requests may find them: the prompt's logits are no NaN, so none of them is."""
        if self.cache is not None:
            for digest, features in self._own.items():
                self.cache.put(self.namespace, self.weights, digest, features)


class _Attachment:
    """Stands for a model's own methods during one forward."""

    def __init__(
        self,
        source: FeatureSource,
        model: nn.Module,
        placeholders: Mapping[MediaKind, tuple[int, int]],
    ) -> None:
        self._source = source
        self._model = model
        self._placeholders = placeholders
        self._is_inside = False
        self.asked: set[MediaKind] = set()  # of which it was

    def in_place_of(self, own: Callable[..., object], kind: MediaKind) -> Callable[..., object]:
        def features(*args: object, **kwargs: object) -> object:
            if self._is_inside:  # a model's method may call another's, or one of its parts'
                return own(*args, **kwargs)
            self._is_inside = True
            self.asked.add(kind)
            if "sample" in kwargs:  # VibeVoice's noise would be another one each time
                kwargs["sample"] = False
            try:
                return self._features(own, kind, args, kwargs)
            finally:
                self._is_inside = False

        return features

    def _features(
        self,
        own: Callable[..., object],
        kind: MediaKind,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        def encode(items: Sequence[MediaItem]) -> object:
            return _call(own, args, kwargs, join(items))

        every = self._source.media.items[kind]
        for item, features in self._source.company.check(self._model, every, encode):
            if self._source.find(item) is None:
                self._source.keep(item, features)
                self._source.num_encoded += 1
        start, stop = self._placeholders[kind]
        items = self._source.media.needed(kind, start, stop)
        unknown = list({i.digest: i for i in items if self._source.find(i) is None}.values())
        if unknown:
            is_all = len(unknown) == len(items)
            output = own(*args, **kwargs) if is_all else encode(unknown)
            self._source.num_encoded += len(unknown)
            try:
                found = split_output(output, unknown)
            except FeatureError:
                if self._source.is_partial(kind, start, stop):
                    raise
                # The model asked for exactly this.
                return output if is_all else own(*args, **kwargs)
            for item, features in zip(unknown, found, strict=True):
                self._source.keep(item, features)
        known = [self._source.find(item) for item in items]
        first = known[0]
        assert first is not None
        rows = [
            torch.cat(layer)[start - items[0].start : stop - items[0].start]
            for layer in zip(*(features.rows for features in known if features), strict=True)
        ]
        return first.form.build(rows)


def _call(
    own: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    tensors: Mapping[str, Tensor],
) -> object:
    """The same call with these tensors, of some of the items, in place of those of all."""

    def given(name: str, value: object) -> object:
        if isinstance(value, Tensor) and name in tensors:
            return tensors[name].to(value.device, value.dtype)
        return value

    names = inspect.signature(own).parameters
    return own(
        *(given(name, value) for name, value in zip(names, args, strict=False)),
        **{name: given(name, value) for name, value in kwargs.items()},
    )
