"""Engine: images and a question in, the target's own answer out."""

import logging
import secrets
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from itertools import count
from operator import add
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmspec.admission import Admission
from mmspec.answers import Answers, Stream, progress_of, result_of, unbegun_result
from mmspec.build_sampler import build_sampler
from mmspec.controller import CONTROLLERS, Controller
from mmspec.daemon_steps import whole_step
from mmspec.decoder import decode
from mmspec.drafters.base import (
    Drafter,
    DrafterForTarget,
    DrawingDrafter,
    LearningDrafter,
    RecordedDrafter,
    TappingDrafter,
    WatchingDrafter,
)
from mmspec.drafters.forced import Forced
from mmspec.drafting import Drafting, DraftSettings
from mmspec.encoders.features import FeatureCache
from mmspec.errors import ConfigError, InputError, check_one_of, failed_to_begin
from mmspec.inputs import ControlMode, ImageSource, InputProcessor
from mmspec.inputs.media_shares import MediaShares
from mmspec.kv import PrefixStore
from mmspec.params import merged_generation_config, stop_strings, stopping_criteria
from mmspec.prefiller import CacheInfo, PrefillSettings
from mmspec.reading import Answer, AnswerPieces, Reading
from mmspec.requests import (
    Messages,
    Progress,
    Request,
    Result,
    build_request,
    check_streamed,
    is_batch,
)
from mmspec.row import Row
from mmspec.sampling import CHOOSING, Choosing
from mmspec.state import Prompt
from mmspec.stream import Piece, TextStream, build_detokenizer
from mmspec.target import Target
from mmspec.target.graphs import GraphInfo
from mmspec.target.own_modes import own_modes
from mmspec.target.probe import reason_against_watching
from mmspec.target.taps import check_taps
from mmspec.tree import TokenTree
from mmspec.verify import VERIFIERS, Rule
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec.chat import Chat

logger = logging.getLogger(__name__)

Exactness = Literal["standard", "bitwise"]
Overlaps = Literal["auto", "always", "never"]
OVERLAP = get_args(Overlaps)
AnyPrompt = str | Messages | Prompt | Mapping[str, Tensor] | Request


class Engine:
    """Owns the target, the drafters and the input processor. Can be used from several threads:
    all of a request's state is in its own call."""

    def __init__(
        self,
        target: Target,
        inputs: InputProcessor | None,
        drafters: Sequence[Drafter | DrafterForTarget] = (),
        *,
        verifier: str | Rule = "coupled",
        controller: str | Controller = "auto",
        max_nodes: int = 64,
        max_rows: int = 8,
        control_tokens: ControlMode = "neutralise",
        fit: Callable[[TokenTree], TokenTree] | None = None,
        prefill_chunk: int | None = None,
        prefix_bytes: int = 0,
        feature_bytes: int = 0,
        choosing: Choosing = "auto",
        exactness: Exactness = "standard",
        overlap: Overlaps = "auto",
        state_bytes: int = 4 * 2**30,
    ) -> None:
        """`drafters` are asked in their order; without any it is plain decoding. `verifier` is a
        name or a rule of one's own making. `controller` "auto" speculates where that is faster,
        "fixed" always; or it is one that has learned already. `max_nodes` is the budget of drafted
        nodes a request and step; `max_rows` how many requests are decoded together. `fit` turns a
        drafter's tree into one that the target can score. A step prefills `prefill_chunk` prompt
        tokens. `prefix_bytes` and `feature_bytes` bound what is kept from request to request: KV,
        and what the encoders said. `choosing` "device" finds the target's choices at all nodes of
        a step together, "host" along the walk, "auto" by where the model lies: the tokens are the
        same. `exactness` "bitwise" gives the same bits of logits with and without speculation, for
        more work a step (docs/exactness.md). `overlap` "always" begins a step without drafts before
        the tokens ahead of it are read, where they are chosen on the device; "auto": where score
        calls are recorded. `state_bytes` bounds the running states of a step's nodes, and so how
        many are drafted. Without `inputs` only processed prompts are taken."""
        if isinstance(verifier, str):
            check_one_of("verifier", verifier, VERIFIERS)
        elif not isinstance(verifier, Rule):
            raise ConfigError(
                f"verifier={verifier!r:.80}: expected one of {', '.join(VERIFIERS)}, or a "
                "mmspec.verify.Rule; a function goes in as Rule(function)"
            )
        if isinstance(controller, str):
            check_one_of("controller", controller, CONTROLLERS)
        check_one_of("choosing", choosing, CHOOSING)
        check_one_of("exactness", exactness, get_args(Exactness))
        check_one_of("overlap", overlap, OVERLAP)
        if max_rows < 1:
            raise ConfigError(f"max_rows={max_rows}: expected 1 or more requests at a time")
        for name, size in (
            ("max_nodes", max_nodes),
            ("prefill_chunk", prefill_chunk or 0),
            ("prefix_bytes", prefix_bytes),
            ("feature_bytes", feature_bytes),
            ("state_bytes", state_bytes),
        ):
            if size < 0:
                raise ConfigError(f"{name}={size}: expected 0 (off) or more")
        names = [drafter.name for drafter in drafters]
        if len(set(names)) < len(names):
            raise ConfigError(f"drafters {names}: expected each name once")
        self.target = target
        self.inputs = inputs
        self.drafters = tuple(
            drafter.for_target(target, inputs) if isinstance(drafter, DrafterForTarget) else drafter
            for drafter in drafters
        )
        self._forced = Forced()  # for requests whose own processors know what comes
        for drafter in self.drafters:
            if isinstance(drafter, TappingDrafter):
                check_taps(drafter.taps.layers, num_layers=target.last_tap, who=drafter.name)
        self._rule = VERIFIERS[verifier] if isinstance(verifier, str) else verifier
        if self._rule.needs_q:
            _check_draws(self.drafters, verifier)
        watched = [d.watched_queries for d in self.drafters if isinstance(d, WatchingDrafter)]
        if any(watched) and (why := reason_against_watching(target)):
            raise ConfigError(
                f"drafters {names}: one of them asks for the queries of "
                f"{type(target.model).__name__}; {why}: expected drafters that need none, as "
                "drafter.compressed_kv.policy=window"
            )
        self._drafts = DraftSettings(
            CONTROLLERS[controller]() if isinstance(controller, str) else controller,
            fit or (lambda tree: tree),
            max_nodes,
            max(watched, default=0),
            state_bytes // target.state_bytes if target.state_bytes else None,
            target.rope_border,
        )
        if not self._rule.only_chooses:  # a text depends on its trees: on no other row's, then
            own_share = self._drafts.nodes_of(max_rows)
            self._drafts = replace(self._drafts, max_nodes=own_share, max_states=None)
        if self.drafters and max_nodes and state_bytes and not self._drafts.nodes_of(1):
            rows = 1 if self._rule.only_chooses else max_rows
            logger.warning(
                "%s: decode.state_bytes=%d has no room for a drafted node's running states beside "
                "node 0's, so nothing is drafted; expected %d bytes or more for %s",
                type(target.model).__name__,
                state_bytes,
                2 * rows * target.state_bytes,
                counted(rows, "request"),
            )
        is_bitwise = exactness == "bitwise"
        self._decoded = target.bitwise(rows=max_rows, nodes=max_nodes + 1) if is_bitwise else target
        self._overlap = overlap
        self._chooses_on_device = CHOOSING[choosing]
        self.max_rows = max_rows  # requests that are decoded together, at most
        self._admission = Admission(target, inputs, control_tokens=control_tokens)
        self._prefill = PrefillSettings(
            PrefixStore(prefix_bytes) if prefix_bytes else None,
            FeatureCache(feature_bytes) if feature_bytes else None,
            prefill_chunk or None,
            is_bitwise,
        )
        if target.cuts.whole_because and (prefix_bytes or prefill_chunk):
            logger.warning(
                "%s: %s; prefix reuse and chunked prefill are off",
                type(target.model).__name__,
                target.cuts.whole_because,
            )

    def __repr__(self) -> str:
        names = " + ".join(drafter.name for drafter in self.drafters) or "none"
        target = self.target
        return f"Engine({type(target.model).__name__} on {target.device}, drafter {names})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Engine cannot be copied, pickled or sent to another process; load one in each "
            "process (mmspec.load). Threads can share one, and its Results can be pickled"
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.inputs.tokenizer if self.inputs is not None else None

    @overload
    def generate(
        self, prompt: Sequence[Request] | list[str] | list[list[dict[str, Any]]], **options: Any
    ) -> list[Result]: ...
    @overload
    def generate(self, prompt: AnyPrompt, **options: Any) -> Result: ...
    def generate(self, prompt: Any, **options: Any) -> Result | list[Result]:
        """Generates for one prompt, or for a list of them (requests, texts, chats, processed
        prompts) as a ragged batch.

        `options` are fields of `Request`, which lists them; in a batch they are laid over each of
        its requests, but for a list of `images`, `videos` or `audio`: it is as long as the batch,
        and has for each prompt its own image, a list of them, or None. A single image goes with
        each prompt. A single request that fails raises; in a batch the failed one has its `error`
        in its Result, with the tokens chosen until then, and the others finish.
        """
        if is_batch(prompt):
            found = dict(self.generate_each(prompt, **options))
            return [found[index] for index in sorted(found)]
        if prompt is None:
            raise InputError("got None for a prompt; expected a text, chat messages or a Request")
        ((_, result),) = self.generate_each([build_request(prompt, options)])
        for sample in result.samples:
            if sample.error is not None:
                raise sample.error
        return result

    def generate_each(
        self, prompts: Iterable[AnyPrompt], **options: Any
    ) -> Iterator[tuple[int, Result]]:
        """Generates for as many prompts as there are, and yields each answer as it ends, with its
        prompt's number from 0.

        A prompt is taken from `prompts` when there is room for it, at most `max_rows` are decoded
        together, and no answer is kept: thousands take the memory of a few. `options` are fields of
        `Request`, as `generate` lays them over a batch; of `images`, `videos` and `audio` that are
        iterators one is taken for each prompt. A request that fails has its `error` in its Result,
        and the others finish. Closing the iterator ends the decoding. Raises InputError for a wrong
        option, and at the end where there were more images than prompts.
        """
        return _ended(self._each(prompts, _shares(prompts, options), tells_steps=False))

    def stream_each(
        self, prompts: Iterable[AnyPrompt | None], **options: Any
    ) -> Iterator[Progress]:
        """As `generate_each`, and tells what each step brings each sample of each request.

        A None among the prompts says that there is none now: those that are decoded go on, and
        `prompts` is asked again after their step; where none is decoded, all have ended. So
        requests can join at any time; by `Request.is_wanted` they leave; and what the others say
        depends on neither.
        """
        shares = _shares(prompts, options, takes_none=False)
        return self._each(prompts, shares, tells_steps=True)

    def prepare(self, prompt: AnyPrompt, **options: Any) -> Request:
        """The request with its prompt processed: images opened, text tokenised. What generates
        takes it as it is; so this can be done in another thread, while others are decoded.
        `options` are fields of `Request`. Raises InputError."""
        request = build_request(prompt, options)
        with own_modes(self.target.device):
            processed = self._admission.prompt(request)
            self._admission.room(request, processed)
        return replace(request, prompt=processed, passages=(), prediction=None)

    def stream(self, prompt: AnyPrompt, **options: Any) -> "Stream":
        """Generates for one prompt, a piece of text at a time. Closing it early frees its KV."""
        request = build_request(prompt, options)
        check_streamed(request)
        with own_modes(self.target.device):
            row = self._row(request, 0)
        return Stream(row, self._decode([row]), self.tokenizer)

    def answer(self, prompt: AnyPrompt, **options: Any) -> Answer:
        """Generates for one prompt, and tells `reasoning`, `text` and `calls` of the request's
        `tools` apart, in the form that the model writes. `result` is the answer as it was decoded,
        of a form whose marks are special tokens with these. Several samples: the first one's."""
        reading = Reading(self.inputs, self.prepare(prompt, **options))
        return reading.answer(self.generate(reading.request))

    def stream_answer(self, prompt: AnyPrompt, **options: Any) -> AnswerPieces:
        """As `answer`, a piece at a time: of the reasoning and the text, without the marks. The
        whole is the stream's `answer`."""
        reading = Reading(self.inputs, self.prepare(prompt, **options))
        return AnswerPieces(self.stream(reading.request), reading)

    def chat(
        self,
        *,
        system: str | None = None,
        images: ImageSource | Sequence[ImageSource] = (),
        **options: Any,
    ) -> "Chat":
        """A conversation: each question is asked with all that was said before, of which only the
        new part is computed. `images` go with the first question; `options` are fields of
        `Request` for every turn."""
        from mmspec.chat import Chat  # it holds an engine, as an engine makes it

        return Chat(self, system=system, images=images, options=options)

    def cache_info(self) -> CacheInfo:
        """What is kept from request to request."""
        return self._prefill.info(off_because=self.target.cuts.whole_because)

    @property
    def graph_info(self) -> GraphInfo | None:
        """What became of the target's score calls on a GPU, and of its drafters' forwards that are
        recorded too; None where none is."""
        drafters = [d for d in self.drafters if isinstance(d, RecordedDrafter)]
        all_graphs = [self._decoded.graphs, *(graphs for d in drafters for graphs in d.recorded)]
        told = [graphs.info for graphs in dict.fromkeys(all_graphs) if graphs is not None]
        return reduce(add, told) if told else None

    def share_cache(self, other: "Engine") -> None:
        """Takes and keeps KV and features where `other`, an engine of the same model, does.

        Raises ConfigError for another model's."""
        if other.target.model is not self.target.model:
            raise ConfigError(
                "share_cache got an engine of another model; expected one that was loaded from the "
                "same model object"
            )
        own = self._prefill
        self._prefill = replace(other._prefill, is_bitwise=own.is_bitwise)
        if own.is_bitwise:  # its chunks are a part of what it promises
            self._prefill = replace(self._prefill, chunk_tokens=own.chunk_tokens)

    def clear_cache(self, namespace: str | None = None) -> None:
        """Forgets what is kept from earlier requests, of all namespaces or of one."""
        for store in (self._prefill.prefixes, self._prefill.features):
            if store is not None:
                store.clear(namespace)
        for drafter in self.drafters:
            if isinstance(drafter, LearningDrafter):
                drafter.forget(namespace)
        if namespace is None:
            for target in {self.target, self._decoded}:
                target.free()
            for drafter in self.drafters:
                if isinstance(drafter, RecordedDrafter):
                    drafter.free_recorded()

    def _each(
        self, prompts: Iterable[AnyPrompt | None], shares: MediaShares, *, tells_steps: bool
    ) -> Generator[Progress]:
        answers, numbers = Answers(), count()

        def rows() -> Iterator[Row | None]:
            for prompt in prompts:
                if prompt is None and tells_steps:
                    yield None
                    continue
                index = next(numbers)
                number = num_begun = 0
                try:
                    requests = self._admission.samples(build_request(prompt, shares.next()))
                    answers.expect(index, len(requests))
                    for request in requests:
                        number = request.sample
                        row = self._row(request, index)
                        num_begun += 1
                        yield row
                except Exception as error:  # raised again by `generate`, or shown in the Result
                    answers.expect(index, num_begun + 1)  # samples behind a failed one don't begin
                    answers.add(index, number, unbegun_result("error", failed_to_begin(error)))

        pieces: dict[Row, list[Piece]] = {}  # of those that are decoded
        with closing(self._decode(rows())) as decoded:
            for row in decoded:
                if tells_steps:
                    step = progress_of(row, self.tokenizer)
                    pieces.setdefault(row, []).extend(step.pieces)
                    yield step
                if row.is_done:
                    all_pieces = [*pieces.pop(row, ()), *row.take_pieces()]
                    result = result_of(row, all_pieces, self.tokenizer)
                    answers.add(row.index, row.sampler.sample, result)
                yield from answers.take()
        yield from answers.take()
        shares.check_end()

    def _decode(self, rows: Iterable[Row | None]) -> Generator[Row]:
        decoded = decode(
            self._decoded,
            rows,
            verify=self._rule,
            drafts=self._drafts,
            max_rows=self.max_rows,
            prefill=self._prefill,
            overlaps=self._overlaps,
        )
        return _step_by_step(decoded, self.target.device)

    @property
    def _overlaps(self) -> bool:
        # Without graphs the host takes longer to tell a forward than the device to compute it.
        return self._overlap == "always" or (
            self._overlap == "auto" and self._decoded.graphs is not None
        )

    def _row(self, request: Request, index: int) -> Row:
        """One sample of the request, processed and ready for the loop."""
        prompt = self._admission.prompt(request)
        max_new_tokens = self._admission.room(request, prompt)
        model = self.target.model
        config = merged_generation_config(
            model,
            request,
            tokenizer=self.tokenizer,
            prompt_length=prompt.num_tokens,
            max_new_tokens=max_new_tokens,
        )
        stop = stop_strings(config, request)
        if stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and this engine has none")
        detokenizer = build_detokenizer(
            self.tokenizer, skip_special_tokens=request.skip_special_tokens
        )
        eos = config.eos_token_id
        sampler = build_sampler(
            model,
            config,
            request,
            prompt.token_ids.to(self.target.logits_device),
            seed=secrets.randbits(64) if request.seed is None else request.seed,
            index=index,
            on_device=self._chooses_on_device,
            is_bitwise=self._prefill.is_bitwise,
        )
        if self._rule.is_greedy_only and not sampler.is_greedy:
            raise ConfigError(
                "verifier=greedy got a request that samples; expected temperature=0. "
                "verifier=coupled is exact for both"
            )
        needs_q = self._rule.needs_q and not sampler.is_greedy  # the greedy walk takes any tree
        drafters: tuple[Drafter, ...] = self.drafters
        if drafters and sampler.guide.forcing and not needs_q:
            drafters = (self._forced, *drafters)
        return Row(
            prompt,
            sampler,
            TextStream(detokenizer, stop),
            Drafting(drafters, request.speculate, needs_q=needs_q),
            eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
            max_new_tokens=max_new_tokens,
            index=index,
            stopping_criteria=stopping_criteria(config, request),
            is_lossless=self._rule.is_lossless,
            namespace=request.namespace if request.reuse else None,
            on_prefill=request.on_prefill,
            is_wanted=request.is_wanted,
        )


def _step_by_step(decoded: Generator[Row], device: torch.device) -> Generator[Row]:
    """The same rows, whatever modes the caller enters and leaves between them."""
    with closing(decoded):
        while True:
            with own_modes(device), whole_step():
                row = next(decoded, None)
            if row is None:
                return
            yield row


def _check_draws(drafters: Sequence[Drafter], verifier: object) -> None:
    """Raises ConfigError for drafters that a rule which divides by q cannot verify."""
    names = "+".join(drafter.name for drafter in drafters)
    got = f"verifier={verifier} with drafter={names}"
    instead = "or take verifier=coupled, which is exact for any drafter"
    if len(drafters) > 1:
        raise ConfigError(
            f"{got}: expected one drafter, as joined trees have no probabilities that they were "
            f"drawn with; leave all but one out, {instead}"
        )
    for drafter in drafters:
        if not (isinstance(drafter, DrawingDrafter) and drafter.draws):
            raise ConfigError(
                f"{got}: expected a drafter that draws its tokens, as this rule divides by their "
                f"probabilities; {drafter.name} does not: set it to draw if it can, {instead}"
            )


def _shares(
    prompts: Iterable[object], options: Mapping[str, Any], *, takes_none: bool = True
) -> MediaShares:
    """`takes_none`: whether a None among the prompts has media of its own."""
    if isinstance(prompts, str | Mapping | Prompt | Request):
        raise InputError(
            f"got one {type(prompts).__name__} as prompts; expected several: a list of them, or "
            "generate for one"
        )
    build_request("", options)  # a wrong option is not each prompt's own mistake
    if isinstance(prompts, Collection) and not takes_none:
        prompts = [prompt for prompt in prompts if prompt is not None]
    return MediaShares(options, prompts)


def _ended(steps: Generator[Progress]) -> Iterator[tuple[int, Result]]:
    with closing(steps):
        for step in steps:
            if step.result is not None:
                yield step.index, step.result
