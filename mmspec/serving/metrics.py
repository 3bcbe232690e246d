"""What a server has done and is doing, for Prometheus."""

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mmspec.requests import Result
from mmspec.running_loop import Ticket
from mmspec.serving.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_A_STEP = (1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16, 32, 64)
_LENGTHS = (1, 8, 32, 128, 512, 2048, 8192, 32768, 131072)


class Metrics:
    """Of one server; with a registry of its own, so that two in a process don't meet."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = registry = CollectorRegistry()
        count = partial(Counter, namespace="mmspec", registry=registry)
        spread = partial(Histogram, namespace="mmspec", registry=registry)
        gauge = partial(Gauge, namespace="mmspec", registry=registry)
        self.requests = count("requests", "HTTP requests", ["path", "status"])
        self._tokens = count("generated_tokens", "Tokens of answers")
        self._prompt = count("prompt_tokens", "Tokens of prompts")
        self._reused = count("reused_tokens", "Prompt tokens that were not computed again")
        self._steps = count("steps", "Forwards that scored drafts, one of each answer")
        self._drafted = count("drafted_tokens", "Drafted and scored", ["drafter"])
        self._accepted = count("accepted_tokens", "Drafted and accepted", ["drafter"])
        self._a_step = spread("tokens_per_step", "Of each answer", buckets=_A_STEP)
        self._length = spread("answer_tokens", "Of each answer", buckets=_LENGTHS)
        self._seconds = spread("request_seconds", "Of each prompt", buckets=_SECONDS)
        self._queued = spread("queue_seconds", "Until a place was free", buckets=_SECONDS)
        self._first = spread(
            "time_to_first_token_seconds", "From a prompt's arrival", buckets=_SECONDS
        )
        self._between = spread(
            "time_per_output_token_seconds", "After the first", buckets=_TOKEN_SECONDS
        )
        waiting = gauge("waiting_requests", "Prompts that wait for a place")
        waiting.set_function(lambda: scheduler.num_waiting)
        decoded = gauge("running_requests", "Prompts that are decoded")
        decoded.set_function(lambda: scheduler.num_decoded)

    def answered(self, ticket: Ticket, result: Result) -> None:
        """A prompt has got its whole answer."""
        now = time.monotonic()
        self._prompt.inc(result.stats.prompt_tokens)
        self._reused.inc(result.stats.reused_tokens)
        self._seconds.observe(now - ticket.arrived_at)
        if ticket.begun_at is not None:
            self._queued.observe(ticket.begun_at - ticket.arrived_at)
        for sample in result.samples:
            stats = sample.stats
            self._tokens.inc(stats.new_tokens)
            self._steps.inc(stats.steps)
            self._a_step.observe(stats.tokens_per_step)
            self._length.observe(stats.new_tokens)
            for name, count in stats.by_drafter.items():
                self._drafted.labels(name).inc(count.proposed)
                self._accepted.labels(name).inc(count.accepted)
        if ticket.first_token_at is not None:
            self._first.observe(ticket.first_token_at - ticket.arrived_at)
            rest = max(sample.stats.new_tokens for sample in result.samples) - 1
            if rest > 0:
                self._between.observe((now - ticket.first_token_at) / rest)

    def page(self) -> bytes:
        return generate_latest(self._registry)
