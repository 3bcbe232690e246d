"""Sampler: the target's logits at one place -> the one token that the seed chooses there."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    SynthIDTextWatermarkLogitsProcessor,
)

from mmspec.callbacks import call_back
from mmspec.draft_guide import WARPERS, DraftGuide, ForcingProcessor
from mmspec.errors import ConfigError, DecodeError
from mmspec.logprobs import ScoreRecorder
from mmspec.noise import Place, choose, gumbel, uniforms
from mmspec.pieces import process
from mmspec.prefixes import can_apply
from mmspec.reads import read
from mmspec.tree import TokenTree
from mmspec.uploads import upload_to
from mmspec.verify import Nodes, Odds, Weigh

Choosing = Literal["auto", "device", "host"]
CHOOSING: Mapping[str, bool | None] = {"auto": None, "device": True, "host": False}
_SPARSE_SHARE = 8  # noise is made for the surviving tokens alone, if at most 1 in 8 survives


class Choice(NamedTuple):
    """What the target chooses at one place, or what a rule draws there."""

    token: int
    value: float  # the largest processed logit; not finite where there was nothing to choose
    scores: Tensor | None = None  # (vocab,) processed, where they are recorded
    chances: Sequence[float] = ()  # of the node's children, where a rule has weighed it


class Sampler:
    """Chooses one row's tokens, in order, each from its own prefix.

    The token at generated position t is argmax(l + g(seed, t)) with the processed logits l and
    Gumbel noise g: an exact sample from softmax(l) (Gumbel-max), and a function of the seed and
    the prefix alone. Greedy is g = 0. Processors are transformers' own, called once a token.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        prompt_ids: Tensor,
        *,
        is_greedy: bool,
        seed: int,
        max_new_tokens: int,
        sample: int = 0,
        recorder: ScoreRecorder | None = None,
        on_device: bool | None = None,
        is_bitwise: bool = False,
    ) -> None:
        """`prompt_ids` (seq,) int64, on the device where the logits will be. `recorder` is told
        what each token was chosen from. `on_device` chooses without waiting for the device more
        than once a token, or once a step where choices are foreseen; None: if it is not the CPU.
        `is_bitwise`: processed logits have the same bits, however many are processed at once."""
        self.processors = processors
        self.is_greedy = is_greedy
        self.seed = seed
        self.sample = sample
        self._prompt_length = prompt_ids.shape[0]
        self._ids = prompt_ids.new_zeros(1, self._prompt_length + max_new_tokens)
        self._ids[0, : self._prompt_length] = prompt_ids
        self._unwritten: list[int] = []  # the newest tokens, not yet in there
        self.num_chosen = 0
        self.recorder = recorder or ScoreRecorder()
        self._on_device = prompt_ids.device.type != "cpu" if on_device is None else on_device
        self._foreseen: Mapping[tuple[int, ...], Choice] = {}
        self._since: tuple[int, ...] = ()  # tokens chosen since they were foreseen
        self.is_bitwise = is_bitwise

    @property
    def ids(self) -> Tensor:
        """(1, seq): the prompt and the chosen tokens."""
        stop = self._prompt_length + self.num_chosen
        if self._unwritten:  # one write for many tokens, where nobody asks in between
            upload_to(self._ids[0, stop - len(self._unwritten) : stop], self._unwritten)
            self._unwritten.clear()
        return self._ids[:, :stop]

    def choose(self, logits: Tensor) -> int:
        """The next token, given the target's raw `logits` (vocab,), and records it.

        Raises DecodeError where the logits hold no token to choose: NaN, or all forbidden.
        """
        choice = self._foreseen.get(self._since)
        if choice is None or choice.chances:  # a rule's draw is another thing than a choice
            scores = self.process(logits)
            token = self.pick(scores)
            self.record(token, (logits, scores))
        else:
            self._check(choice.value)
            token = choice.token
            self.record(token, _seen(logits, choice))
        return token

    @property
    def can_foresee(self) -> bool:
        """Whether its choices may be computed before the tokens that they follow are chosen, and
        are better found that way."""
        return self._on_device and all(map(can_apply, self.processors))

    def foresee(self, choices: Mapping[tuple[int, ...], Choice]) -> None:
        """What `choose` will say after each of these paths of tokens behind the chosen ones, in
        place of what was foreseen before."""
        self._foreseen, self._since = choices, ()

    @property
    def foreseen(self) -> Callable[[tuple[int, ...]], int | None] | None:
        """Gives the token that `foresee` was told of for a path; None if it was told of none."""
        known = self._foreseen
        if not known:
            return None
        return lambda path: choice.token if (choice := known.get(path)) else None

    @property
    def changes_logits(self) -> bool:
        return bool(self.processors) or not self.is_greedy

    def place(self, depth: int) -> Place:
        """Of the token that comes after `depth` more."""
        return Place(self.seed, self.sample, self.num_chosen + depth)

    def process(self, logits: Tensor, ahead: Sequence[int] = ()) -> Tensor:
        """The raw `logits` (vocab,) after the processors: the log of the distribution that is
        sampled from, but for a constant. Once a token: a processor may keep state.

        `ahead` are tokens that may or may not come after the chosen ones; `logits` follow them.
        Raises ConfigError where such a look might change a processor's state.
        """
        scores = logits
        if self.changes_logits:
            # A copy in float32, as transformers makes it: processors may write into it.
            scores = logits.to(dtype=torch.float32, copy=True)
        if self.processors:
            ids = self.ids
            if ahead:
                self._refuse_state()
                length = ids.shape[1]
                upload_to(self._ids[0, length : length + len(ahead)], ahead)
                ids = self._ids[:, : length + len(ahead)]
            given = scores.unsqueeze(0)
            if self.is_bitwise:
                said = call_back(process, self.processors, ids, given)
            else:
                said = call_back(self.processors, ids, given)
            if not isinstance(said, Tensor) or said.shape != given.shape:
                raise DecodeError(_wrong_scores(said, given, self.processors))
            scores = said.squeeze(0)
        return scores

    def pick(self, scores: Tensor) -> int:
        """The token that the noise of this place chooses from processed `scores` (vocab,)."""
        token, value = self._best(scores)
        self._check(value)
        return token

    def weigh(
        self, weigh: Weigh, tree: TokenTree, logits: Tensor, nodes: Sequence[int], *, at: int
    ) -> list[Odds]:
        """What `weigh` makes of `nodes`, which lie at or below node `at`, whose token is the last
        that was chosen; `logits` (nodes, vocab) are the whole tree's. As `process`, which is called
        once a node. Raises DecodeError as `choose` does."""
        depth = len(tree.path_to(at))
        paths = [tuple(tree.tokens[n] for n in tree.path_to(node)[depth:]) for node in nodes]
        foreseen = [self._foreseen.get((*self._since, *path)) for path in paths]
        known = [choice for choice in foreseen if choice is not None]
        if len(known) < len(foreseen):
            return self._weigh_now(weigh, tree, logits, nodes, paths)
        for choice in known:
            self._check(choice.value)
        return [
            Odds(choice.chances, partial(int, choice.token), _seen(logits[node], choice))
            for node, choice in zip(nodes, known, strict=True)
        ]

    def _weigh_now(
        self,
        weigh: Weigh,
        tree: TokenTree,
        logits: Tensor,
        nodes: Sequence[int],
        paths: Sequence[tuple[int, ...]],
    ) -> list[Odds]:
        pairs = zip(nodes, paths, strict=True)
        scores = torch.stack([self.process(logits[node], path) for node, path in pairs])
        weighed = weigh(Nodes.of(tree, nodes, scores))
        largest = scores.amax(dim=-1)
        draws: list[Callable[[], int]]
        if self._on_device:
            chosen, _ = best_of(weighed.rests, [self.place(len(path)) for path in paths])
            values, chances, tokens = read(largest, weighed.chances, chosen)
            draws = [partial(int, token) for token in tokens]
        else:  # nothing is drawn but at the walk's end
            values, chances = read(largest, weighed.chances)
            draws = [partial(self.pick, rest) for rest in weighed.rests]
        for value in values:
            self._check(value)
        return [
            Odds(own[: len(tree.children(node))], draw, (logits[node], processed))
            for node, own, draw, processed in zip(nodes, chances, draws, scores, strict=True)
        ]

    def uniforms(self, count: int) -> list[float]:
        """Numbers in (0, 1) of the next token's place, independent of the noise that chooses."""
        return uniforms(self.seed, self.num_chosen, count, sample=self.sample)

    def _check(self, value: float) -> None:
        """`value` is the largest processed logit."""
        if not -torch.inf < value < torch.inf:
            what = {-torch.inf: "every token forbidden", torch.inf: "infinity"}.get(value, "NaN")
            raise DecodeError(
                f"logits at generated token {self.num_chosen}: got {what}, expected a finite "
                "maximum; look at the model's dtype (float16 overflows) and the logits processors"
            )

    def _refuse_state(self) -> None:
        names = [type(p).__name__ for p in self.processors if _may_keep_state(p)]
        if names:
            raise ConfigError(
                f"this verifier looks ahead, past tokens that may be rejected, and the logits "
                f"processors {', '.join(names)} may keep state; leave them out, or take a verifier "
                "that calls them once a token, such as coupled or speculative"
            )

    def record(self, token: int, seen: tuple[Tensor, Tensor] | None = None) -> None:
        """The token stands; the next one comes after it. `seen`: the logits and scores (vocab,)
        that it was chosen from."""
        if self.recorder.is_needed:
            assert seen is not None, "a token without the scores that are to be recorded"
            self.recorder.record(*seen, token)
        self._unwritten.append(token)
        if self._foreseen:
            self._since += (token,)
        self.num_chosen += 1

    def _best(self, scores: Tensor) -> tuple[int, float]:
        if self._on_device:
            places = None if self.is_greedy else [self.place(0)]
            (token,), (value,) = read(*best_of(scores.unsqueeze(0), places))
            return int(token), value
        if self.is_greedy:
            return _largest(scores)
        vocab_size = scores.shape[0]
        survivors = (scores > -torch.inf).nonzero().squeeze(-1)
        # NaN is no survivor, but must not be lost: it goes the dense way, where argmax finds it.
        if 0 < survivors.shape[0] <= vocab_size // _SPARSE_SHARE and not scores.isnan().any():
            scores = scores[survivors]
            perturbed = scores + self._noise(vocab_size, survivors)
            best, _ = _largest(perturbed)
            return int(survivors[best]), float(scores[best])
        token, _ = _largest(scores + self._noise(vocab_size, None))
        return token, float(scores[token])

    def _noise(self, vocab_size: int, token_ids: Tensor | None) -> Tensor:
        return gumbel(
            self.seed,
            self.num_chosen,
            vocab_size,
            sample=self.sample,
            token_ids=token_ids,
            device=self._ids.device,
        )

    @cached_property
    def guide(self) -> DraftGuide:
        """What a drafter may follow of this request's sampling."""
        return DraftGuide(
            self.is_greedy,
            self.seed,
            self.sample,
            self._prompt_length,
            LogitsProcessorList(p for p in self.processors if isinstance(p, WARPERS)),
            tuple(p for p in self.processors if isinstance(p, ForcingProcessor)),
            max_length=self._ids.shape[1],
        )


def best_of(scores: Tensor, places: Sequence[Place] | None) -> tuple[Tensor, Tensor]:
    """Of each row of `scores` (nodes, vocab) the entry that is largest with the noise of its place
    (without noise: None), the first among equals, a NaN counting as largest: tokens (nodes,) int64
    and their values (nodes,) without the noise. Nothing waits for the device."""
    if places is not None:
        return choose(scores, places)
    values, tokens = scores.max(dim=-1)
    return tokens, values


def _seen(logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor] | None:
    return None if choice.scores is None else (logits, choice.scores)


def _wrong_scores(said: object, given: Tensor, processors: LogitsProcessorList) -> str:
    got = f"scores of shape {tuple(said.shape)}" if isinstance(said, Tensor) else repr(said)[:60]
    names = ", ".join(getattr(p, "__name__", type(p).__name__) for p in processors)
    return (
        f"the logits processors ({names}) gave {got}; expected each to return scores of shape "
        f"{tuple(given.shape)}, as it was given"
    )


def _may_keep_state(processor: LogitsProcessor) -> bool:
    """False for those known to depend on the tokens alone: transformers' own, and ours."""
    if isinstance(processor, SynthIDTextWatermarkLogitsProcessor):  # remembers its contexts
        return True
    package = type(processor).__module__
    return package != "transformers.generation.logits_process" and not package.startswith("mmspec.")


def _largest(scores: Tensor) -> tuple[int, float]:
    """The largest entry of (vocab,), the first among equals, and its index before it; a NaN counts
    as largest."""
    if scores.device.type == "cpu":
        values = scores.float().numpy()  # its argmax is vectorised, unlike torch's
        place = int(values.argmax())
        return place, float(values[place])
    place = int(scores.argmax())
    return place, float(scores[place])
