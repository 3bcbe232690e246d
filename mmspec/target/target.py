"""Target: any transformers decoder as `prefill` and `score`."""

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.attention import RowNodes
from mmspec.devices import with_float64
from mmspec.encoders.features import FeatureSource, gives_features
from mmspec.encoders.media import CROSS_MASK
from mmspec.errors import ConfigError, ModelError
from mmspec.kv import BufferPool, KVCache, QueryLog, WritePlan
from mmspec.state import Placement, Prefill, Prompt, Scores
from mmspec.target import cross
from mmspec.target.attached import Attachment, Attachments, Attention, ForwardInputs
from mmspec.target.blocks import Blocks
from mmspec.target.families import (
    index_layers,
    is_read_again,
    mask_rules,
    prompt_cuts,
    refuse_unsupported,
    rope_border,
)
from mmspec.target.forward_lock import forward_lock
from mmspec.target.found import Found
from mmspec.target.graphs import (
    Computed,
    HeldQueries,
    Recorder,
    ScoreCall,
    ScoreGraphs,
    StaticInputs,
)
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule
from mmspec.target.mixers import Mixers
from mmspec.target.positions import prompt_positions
from mmspec.target.prompt_inputs import inputs_of
from mmspec.target.skipping import seeing_packing
from mmspec.target.stateful import Observer, cache_keyword, state_kinds
from mmspec.target.taps import Hidden, asked_for, late, taken
from mmspec.target.tower import TextTower
from mmspec.target.weight_state import WeightState
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class Target:
    """The model whose distribution is kept.

    Holds no request's state and changes nothing on the model but within a score call, which runs
    by `attention`, `linears` and `blocks` (see `attached`); prefill is the model's own forward
    throughout.
    `taps` are indices into transformers' `hidden_states`: 0 is the embedding, i the output of
    layer i, and the last one, `last_tap`, is what comes after the final norm. What a family adds
    between two layers (Qwen3-VL's deepstack features) is not in the one before it. Without taps no
    hidden state is kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_rule: MaskRule | None = None,
        attention: Attention = "model",
        backend: str = "auto",
        linears: Linears | None = None,
        blocks: Blocks | None = None,
        found: Found | None = None,
    ) -> None:
        """`found`: of another target of the model, which it shares. Raises ModelError for a model
        that cannot be decoded (see `families`)."""
        refuse_unsupported(model)
        self.model = model
        self.found = found or Found()
        self.mask_rule = mask_rule or mask_rules(model.config)[0]
        self.attachments = Attachments(
            model,
            mask_rule=self.mask_rule,
            attention=attention,
            backend=backend,
            linears=linears,
            blocks=blocks,
        )
        # Asked of the model, both cost a walk through its modules, in every call.
        self._first = next(p for p in model.parameters() if p.is_floating_point())
        self._embedding = model.get_input_embeddings()
        self._text_config = model.config.get_text_config(decoder=True)
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_keyword = cache_keyword(model)
        self.cross_layers = cross.cross_layers(model.config)
        # A text beyond it turns the positions of all in its forward otherwise.
        self.rope_border = rope_border(model.config)
        self._is_read_again = is_read_again(model.config)
        # Narrowed where the encoders turn out unusual.
        self.cuts = replace(prompt_cuts(model), has_whole_media=not gives_features(model))
        self._shape: tuple[int, int] | None = None  # (rows, nodes) of all score calls; None: any
        self._lock = forward_lock(model)
        self.graphs: ScoreGraphs | None = None
        self._buffers: BufferPool | None = None
        self.state_kinds = state_kinds(model.config)
        self.state_bytes = 0  # of the running states of a row, or a node; 0: it keeps none
        if self.state_kinds:
            with self._lock:
                self.found.mixers = self.found.mixers or self._find_mixers()
            self.attachments.mixers = self.found.mixers
            self.state_bytes = self.found.mixers.state_bytes

    def variant(self, *attachments: Attachment) -> "Target":
        """The same model, whose score calls run with more attached: quantised weights, layers left
        out. It drafts with the target's KV and waits for the same lock, so that no forward of the
        target's own ever meets what is attached."""
        return self._with(self.attachments.joined(attachments))

    def use_graphs(self, recorder: Recorder) -> None:
        """From now on score calls that come again are recorded, and replayed; buffers of caches
        that are made from now on stay where they are from one cache to the next. Not for a target
        that is at work already. Raises ConfigError where attention is the model's own."""
        if self.attachments.attention != "tree":
            raise ConfigError(
                "graphs need mmspec's own attention: probe the model with attention='tree'"
            )
        self.graphs = ScoreGraphs(recorder, self.device)
        self._buffers = BufferPool()

    def use_graphs_as(self, other: "Target") -> None:
        """As `use_graphs`, where the other target does and this one can."""
        if other.graphs is None or self.graphs is not None or self.attachments.attention != "tree":
            return
        recorder = other.graphs.recorder.another(self.device)
        if recorder is not None:
            self.use_graphs(recorder)

    def free(self) -> None:
        """Drops graphs, and buffers that no cache uses."""
        with self._lock:
            if self.graphs is not None:
                self.graphs.clear()
            if self._buffers is not None:
                self._buffers.clear()

    def bitwise(self, *, rows: int, nodes: int) -> "Target":
        """The same model, whose score calls all have one shape: `rows` rows of `nodes` nodes, the
        most that a call may ask for. Then a node's logits have the same bits whatever the tree, the
        batch, and what of its text was committed before (see `bits`), recorded or not."""
        own = Attachments(self.model, mask_rule=self.mask_rule, attention="tree", is_bitwise=True)
        fixed = self._with(own, shape=(rows, nodes))
        if self.graphs is not None:
            fixed._buffers = BufferPool()
        return fixed

    def _with(self, attachments: Attachments, *, shape: tuple[int, int] | None = None) -> "Target":
        """The same model with other attachments, and graphs of its own where there are any."""
        other = copy.copy(self)
        other.attachments, other._shape = attachments, shape
        if self.graphs is not None:
            other.graphs = ScoreGraphs(self.graphs.recorder, self.device)
        return other

    @property
    def packing(self) -> frozenset[nn.Module]:
        """The decoder layers that hand on a tuple, seen while they read a few tokens."""
        if self.found.packing is None:
            cache, inputs = self.new_cache(), cross.probe_inputs(self.model, 2)
            prompt = Prompt(torch.ones(2, dtype=torch.long), model_inputs=inputs)
            with self._lock, seeing_packing(self.model) as packing:
                self.prefill(prompt, cache, cache.open(prompt.num_tokens))
            cache.release()
            self.found.packing = frozenset(packing)
        return self.found.packing

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return input_device(self._embedding, self._first)

    @property
    def logits_device(self) -> torch.device:
        """Where logits are given, and so tokens chosen: the model's device, if it has float64."""
        return with_float64(self.device)

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    @property
    def vocab_size(self) -> int:
        return self._text_config.vocab_size

    @property
    def num_embeddings(self) -> int:
        """Token ids that the model can read; more than vocab_size where a family pads."""
        return self._embedding.num_embeddings

    @property
    def last_tap(self) -> int:
        """The tap after the final norm: what the head reads."""
        return self._text_config.num_hidden_layers

    @property
    def max_positions(self) -> int | None:
        """The context that the model was made for, in tokens; None where it does not say."""
        config = self._text_config
        return getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))

    @property
    def fingerprint(self) -> WeightState:
        """That nothing computed before is taken for this model's."""
        return WeightState.of(self.model)

    def new_cache(self, *, watched_queries: int = 0, num_recent: int = 0) -> KVCache:
        """An empty cache, which logs the queries of each row's so many newest tokens; with running
        states a row of it may be cut by `num_recent` tokens."""
        log = QueryLog(watched_queries) if watched_queries else None
        return KVCache(
            self._text_config.num_hidden_layers,
            queries=log,
            pool=self._buffers,
            cross_layers=self.cross_layers,
            index_layers=index_layers(self.model.config),
            states=self.state_kinds,
            num_recent=num_recent,
        )

    def _find_mixers(self) -> Mixers:
        """The model's modules with a running state, observed while it reads a few tokens. Raises
        ModelError where the states are not in the cache."""
        cache, prompt = self.new_cache(), Prompt(torch.ones(3, dtype=torch.long))
        observer, row = Observer(self.model.get_decoder(), cache), cache.open(prompt.num_tokens)
        with observer.seeing_states():
            self.prefill(prompt, cache, row, stop=2)
        if not observer.mixers.each:
            raise ModelError(
                f"{type(self.model).__name__} keeps its running states outside of transformers' "
                "cache, so they cannot branch into a token tree. Use transformers' generate for it."
            )
        with observer.seeing_projections():
            self.prefill(prompt, cache, row, start=2)
        found = observer.mixers
        cache.release()
        return found

    def prefill(
        self,
        prompt: Prompt,
        cache: KVCache,
        row: int,
        *,
        start: int = 0,
        stop: int | None = None,
        taps: Collection[int] = (),
        features: FeatureSource | None = None,
        on_logits: Callable[[int, Tensor], None] | None = None,
        keep: Sequence[int] | None = None,
    ) -> Prefill:
        """Runs the prompt's tokens [start, stop), their images included, through the model's own
        forward and commits them to `row` of the cache, which must hold the `start` before them.

        Native on purpose: some families attend in both directions within an image or the prompt.
        Only what comes behind committed tokens gets our own attention, which needs no mask of all
        its columns, or our own mask. Where a prompt may be cut is told by `cuts`. `logits` are
        those of the last token run, `hidden` of all that ran.
        A part of a prompt with media needs `features`; the whole can have them encoded natively.
        `on_logits(start, logits (tokens, vocab))` is told what the target says after each token
        run; without it only the last one's logits are made. With `keep`, increasing indices into
        the tokens run, the other tokens' keys are dropped again; positions stay what they were.
        """
        stop = prompt.num_tokens if stop is None else stop
        held = cache.length(row)
        assert held == start, f"row {row} already holds {held} tokens, expected {start}"
        positions, offsets = prompt_positions(self.model, prompt)
        if start == 0:
            cache.cross.forget(row)
        seen = cross.sights(prompt) if self.cross_layers else None
        if seen is None:
            reading = inputs_of(self.model, prompt, start, stop, features)
        else:
            is_first = not cache.cross.holds(row)
            shown = upload(seen[:stop], self.device)
            reading = cross.inputs_of(self.model, prompt, features, seen=shown, is_first=is_first)
        inputs: dict[str, object] = {}
        if prompt.encoded:
            inputs["mm_encoder_outputs"] = dict(prompt.encoded)
        if "logits_to_keep" in self._parameters:
            inputs["logits_to_keep"] = 1 if on_logits is None else 0
        with (
            self._lock,
            torch.no_grad(),
            cache.writing([row], [stop - start]) as plan,
            nullcontext() if cache.states is None else cache.states.following(),
            reading as told,
            self._reading(prompt, cache, plan, start, stop) as attended,
            self.attachments.tapped(cache.tap([row], [stop - start], is_prompt=True)) as watched,
        ):
            inputs |= {n: self._placed(v) for n, v in told.items() if n != "position_ids"}
            ids = prompt.token_ids[start:stop].unsqueeze(0)
            inputs |= {**attended, **watched}
            read = self._run(None, ids, positions[..., start:stop], cache, taps, inputs)
        if on_logits is not None:
            on_logits(start, read.logits[0])
        if seen is not None:
            cache.cross.see(row, upload(seen[stop - 1], self.device))
        kept = range(stop - start) if keep is None else keep
        cache.commit({row: kept})
        offsets = tuple(offset + stop - start - len(kept) for offset in offsets)
        hidden = {tap: states[0] for tap, states in read.hidden_states.items()}
        return Prefill(read.logits[0, -1], Placement(row, offsets), hidden, cache)

    def read(self, texts: Sequence[Sequence[int]], *, taps: Collection[int]) -> list[Hidden]:
        """The hidden states of texts without media, all in one forward that keeps nothing: of each
        text layer -> (seq, hidden)."""
        ids = _padded(texts)
        lengths = torch.tensor([[len(text)] for text in texts])
        mask = (torch.arange(ids.shape[1]) < lengths).long()  # padding stands behind the text
        told: dict[str, object] = {"attention_mask": mask.to(self.device)}
        if "logits_to_keep" in self._parameters:
            told["logits_to_keep"] = 1
        positions, _ = prompt_positions(self.model, Prompt(ids[0]))  # of a text, by its length
        positions = positions.expand(*positions.shape[:-2], len(texts), -1)
        with self._lock, torch.no_grad():
            read = self._run(None, ids, positions, None, taps, told)
        return [
            {tap: states[row, : len(text)] for tap, states in read.hidden_states.items()}
            for row, text in enumerate(texts)
        ]

    @contextmanager
    def _reading(
        self, prompt: Prompt, cache: KVCache, plan: WritePlan, start: int, stop: int
    ) -> Iterator[ForwardInputs]:
        """Within it, one forward reads the prompt's tokens [start, stop) with the keywords that it
        yields."""
        blocks = prompt.media if self.cuts.has_blocks else ()
        within = [(s.start - start, s.stop - start) for s in blocks if start <= s.start < stop]
        if start and not within:
            like, device = self._first, self.device
            with self.attachments.reading(cache, plan, like=like, device=device) as attended:
                if attended is not None:
                    yield attended
                    return
        if start == 0:
            yield {"attention_mask": torch.ones(1, stop, dtype=torch.long).to(self.device)}
        else:
            place = (start, stop - start, within, self.dtype)
            mask = self.mask_rule.build_chunk(*place, device=self.device)
            with self.attachments.masked(mask) as masked:
                yield masked

    def score(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        *,
        taps: Collection[int] = (),
        written: Sequence[int] = (),
        ids: Tensor | None = None,
    ) -> list[Scores]:
        """Scores one tree a row, all in one forward; texts on both sides of a `rope_border` in two.
        The nodes' keys are written behind each row's committed tokens, and kept or dropped by
        `cache.commit`.

        With `written`, calls since the last commit have written the first `written[i]` nodes of
        tree i: only the others are computed, on top of those, and only theirs are the scores.
        `ids` (batch, nodes) int64 on the device: the tokens of those, in place of the trees' own,
        which are not known yet. As many of each row."""
        done = list(written) or [0] * len(trees)
        sides = self._sides(cache, placements)
        if len(sides) > 1:
            found: dict[int, Scores] = {}
            for side in sides:
                scores = self.score(
                    [trees[row] for row in side],
                    cache,
                    [placements[row] for row in side],
                    taps=taps,
                    written=[done[row] for row in side],
                    ids=None if ids is None else ids[list(side)],
                )
                found.update(zip(side, scores, strict=True))
            return [found[row] for row in range(len(trees))]
        counts = [tree.num_nodes - old for tree, old in zip(trees, done, strict=True)]
        lengths = [cache.length(placement.row) for placement in placements]
        rows = [placement.row for placement in placements]
        if ids is None:
            ids = _padded([tree.tokens[old:] for tree, old in zip(trees, done, strict=True)])
        positions = _node_positions(trees, lengths, placements, done)
        if self._shape is not None:
            size = len(trees), max(counts)
            assert not any(done), "in bitwise mode a tree is scored in one call"
            assert size[0] <= self._shape[0] and size[1] <= self._shape[1], f"{size}: too large"
        with self._lock, torch.no_grad(), cache.writing(rows, counts, after=done) as plan:
            levels = None
            if cache.states is not None:
                levels = cache.states.levels([tree.parents for tree in trees], done)
            tree_call = self.attachments.tree_call(trees, cache, plan, done)
            seen = cache.cross.seen(rows)
            computed: Computed | None = None
            # What is recorded knows of no images beside the tokens.
            if seen is None and (self.graphs is not None or self._shape is not None):
                computed = self._by_inputs(
                    ScoreCall(
                        ids, positions, tree_call, plan, cache, rows, taps, self._shape, levels
                    )
                )
            if computed is None:
                with (
                    self.attachments.scoring(
                        tree_call,
                        cache,
                        plan,
                        like=self._first,
                        device=self.device,
                        levels=levels,
                    ) as (tower, inputs),
                    self.attachments.tapped(cache.tap(rows, counts)) as watched,
                ):
                    beside = {} if seen is None else {CROSS_MASK: cross.told_to_nodes(seen, plan)}
                    told = {**beside, **inputs, **watched}
                    computed = self._run(tower, ids, positions, cache, taps, told)
        hidden = late(computed.hidden_states)
        return [
            Scores(computed.logits[index, :count], hidden.of(index, count))
            for index, count in enumerate(counts)
        ]

    def crosses(self, prompt: Prompt, num_tokens: int) -> bool:
        """Whether the text of `prompt` has to be read again (`read_again`) once so many of its
        tokens are committed and another one follows."""
        is_text = not prompt.media and not prompt.model_inputs
        return num_tokens == self.rope_border and self._is_read_again and is_text

    def read_again(self, tokens: Sequence[int], cache: KVCache, row: int) -> None:
        """Computes all that the row holds anew, as the beginning of `tokens`, which has one token
        more, and whose positions are turned by its length."""
        cache.truncate(row, 0)
        self.prefill(Prompt(torch.tensor(tokens)), cache, row)
        cache.truncate(row, len(tokens) - 1)

    def _sides(self, cache: KVCache, placements: Sequence[Placement]) -> list[list[int]]:
        """The rows whose positions are turned alike, by their places."""
        border, places = self.rope_border, range(len(placements))
        if border is None:
            return [list(places)]
        beyond = [cache.length(placement.row) >= border for placement in placements]
        sides = [[place for place in places if beyond[place] is side] for side in (False, True)]
        return [side for side in sides if side]

    def _by_inputs(self, call: ScoreCall) -> Computed | None:
        """The scores of a call that is replayed, or is padded to the one shape of bitwise mode and
        computed by the forward that a graph would repeat. Its queries go to the cache's log. None
        where it is neither."""
        computed: Computed | None = None
        if self.graphs is not None:
            computed = self.graphs.score(
                call, self._compute, mode=self.attachments.state, model=self.model
            )
        if computed is None and call.shape is not None:
            assert call.bucket is not None
            inputs = StaticInputs(call.bucket, self.device)
            inputs.fill(call)
            computed = self._compute(inputs, call, rows=call.tree.rows)
        if computed is not None and call.cache.queries is not None:
            tap = call.cache.queries.tap(call.rows, call.plan.counts)
            for queries in computed.queries:
                tap.take(queries.layer, queries.states, queries.scaling)
        return computed

    def _compute(
        self, given: StaticInputs, call: ScoreCall, *, rows: Sequence[RowNodes] | None = None
    ) -> Computed:
        """A call's forward, in the form that is recorded; with `rows`, for attention that reads
        them on the CPU, it is not."""
        tap = HeldQueries() if call.cache.queries is not None else None
        plan = replace(call.plan, captured=given.slots)
        with (
            call.cache.planned(plan),
            self.attachments.scoring(
                given.tree_call(call, rows=rows),
                call.cache,
                plan,
                like=self._first,
                device=self.device,
                levels=given.levels,
            ) as (tower, inputs),
            self.attachments.tapped(tap) as tapped,
        ):
            told = {**inputs, **tapped}
            made = self._run(tower, given.ids, given.positions, call.cache, call.taps, told)
            hidden = {tap: made.hidden_states[tap] for tap in call.taps}  # made now, and recorded
        queries = () if tap is None else tuple(tap.held)
        return Computed(made.logits, hidden, queries)

    def _run(
        self,
        tower: TextTower | None,
        ids: Tensor,
        positions: Tensor,
        cache: KVCache | None,
        taps: Collection[int],
        inputs: Mapping[str, object],
    ) -> Computed:
        """One forward, by the model itself where there is no tower; without a cache it keeps
        nothing."""
        skipped = () if CROSS_MASK in inputs else self.cross_layers
        run: Callable[..., Any] = tower or self.model
        output = run(
            input_ids=upload(ids, self.device),
            position_ids=upload(positions, self.device),
            **{self._cache_keyword: cache},
            use_cache=cache is not None,
            output_hidden_states=asked_for(taps, skipped=skipped),
            **inputs,
        )
        logits = output.logits.to(self.logits_device)
        return Computed(logits, taken(output, taps, skipped=skipped))

    def _placed(self, value: Tensor) -> Tensor:
        """On the model's device; pixels and the like in the model's dtype."""
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


def input_device(embedding: nn.Module, weight: Tensor) -> torch.device:
    """Where a model's `embedding` is computed. With accelerate, which spreads models over devices
    and keeps weights elsewhere between forwards, that is not where its `weight` lies."""
    hook = vars(embedding).get("_hf_hook")  # a module looks long for what it does not have
    place = getattr(hook, "execution_device", None)
    return weight.device if place is None else torch.device(place)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(batch, nodes) int64; short rows are padded with token 0, which no one sees."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _node_positions(
    trees: Sequence[TokenTree],
    lengths: Sequence[int],
    placements: Sequence[Placement],
    written: Sequence[int],
) -> Tensor:
    """Committed length + depth + the row's offset of the nodes not yet written: (batch, nodes), or
    (planes, batch, nodes) under M-RoPE. Siblings share a position."""
    rows = list(zip(trees, lengths, written, strict=True))
    planes = [
        _padded(
            [
                [length + offset + depth for depth in tree.depths[old:]]
                for (tree, length, old), offset in zip(rows, offsets, strict=True)
            ]
        )
        for offsets in zip(*(placement.position_offsets for placement in placements), strict=True)
    ]
    return planes[0] if len(planes) == 1 else torch.stack(planes)
