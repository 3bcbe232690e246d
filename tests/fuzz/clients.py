"""Clients of the server, side by side: what each is told is what plain decoding says alone."""

import asyncio
import base64
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mmspec.errors import InputError
from mmspec.requests import Request, Result
from mmspec.state import Prompt

from .chats import QUESTIONS, parts_of
from .drafting import Truths
from .forms import draw_schema, guide_of
from .judge import leaks, rounding_of, watched
from .report import Refused, Report, may_refuse
from .speakers import SEEING, WRITING, asked_plainly, draw_engine, draw_media, plain_speaker

SHARED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}  # ours -> OpenAI's
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@dataclass(frozen=True)
class Call:
    """`requests`: what it asks, a prompt each, as mmspec's own. `leaves_after`: seconds."""

    path: str
    body: dict[str, Any]
    requests: Sequence[Request]
    expected: list[list[Result]] = field(default_factory=list)
    wait: float = 0.0
    leaves_after: float | None = None

    @property
    def samples(self) -> list[Result]:
        """In the order of its choices."""
        return [sample for results in self.expected for sample in results]


def play_clients(draw: random.Random, report: Report, folder: Path) -> None:
    if not all(map(find_spec, ("starlette", "uvicorn", "prometheus_client", "httpx2"))):
        raise Refused("the extra 'serve' is not installed")
    from mmspec.serving import ServerSettings, create_app

    name = draw.choice([*SEEING, *WRITING])
    plain, truths = plain_speaker(name), Truths()
    with may_refuse():
        engine, report.title = draw_engine(draw, name, truths)
    for number in range(draw.choice([1, 2])):
        report.begin(number, "clients of a server")
        calls = [_draw_call(draw, name) for _ in range(draw.randint(1, 6))]
        for call in calls:
            call.expected.extend(asked_plainly(plain, truths, one) for one in call.requests)
        settings = ServerSettings(name="it", max_waiting=draw.choice([50, 100]))
        with watched([engine]) as caches:
            app = create_app(engine, settings)
            answers = asyncio.run(_asked(app, calls))
            report.wrong += leaks(engine, caches)
        if app.state.scheduler.num_decoded or app.state.scheduler.num_waiting:
            report.wrong.append(f"round {number}: requests are left in the scheduler")
        for call, (status, text) in zip(calls, answers, strict=True):
            exact = rounding_of(plain)
            wrong = _compared(call, status, text, exact)
            report.wrong += [f"round {number}, {call.path} {_shown(call.body)}: {w}" for w in wrong]
            report.requests += len(call.samples)
            report.tokens += sum(len(sample.tokens) for sample in call.samples)
            report.accepted += _accepted(status, text)


def _draw_call(draw: random.Random, name: str) -> Call:
    options: dict[str, Any] = {"seed": draw.randrange(99)}
    options["temperature"] = draw.choice([0.0, 0.7, 1.0])
    options["max_new_tokens"] = draw.choice([1, 4, 12, 20])
    for option, values in (
        ("n", (2, 3)),
        ("top_p", (0.5, 0.9)),
        ("top_k", (3, 20)),
        ("min_p", (0.05, 0.5)),
        ("frequency_penalty", (0.7,)),
        ("presence_penalty", (-0.5, 1.0)),
        ("logit_bias", ({7: 4.0, 11: -100.0},)),
        ("repetition_penalty", (1.3,)),
        ("min_new_tokens", (2,)),
        ("ignore_eos", (True,)),
        ("stop", ("e", ["th", "q", "a b"])),
        ("namespace", ("a", "b")),
        ("reuse", (False,)),
        ("speculate", (True, True, False)),
        ("prediction", ("the cat and the hat", "x")),
        ("logprobs", (0, 2, 5)),
        ("passages", (["the cat and the hat"],)),
    ):
        if draw.random() < 0.2:
            options[option] = draw.choice(values)
    is_chat = draw.random() < 0.6
    body = {SHARED.get(option, option): value for option, value in options.items()}
    if "logit_bias" in body:
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    if draw.random() < 0.5:
        body["stream"] = True
        if draw.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    timing = {"wait": draw.choice([0.0, 0.0, 0.01, 0.05])}
    if draw.random() < 0.25:
        timing["leaves_after"] = draw.choice([0.0, 0.01, 0.05, 0.2])
    if is_chat:
        media = draw_media(draw, name, most=1, as_files=False)
        media.pop("videos", None), media.pop("audio", None)
        question = draw.choice(QUESTIONS)
        earlier = [{"role": "user", "content": "so"}, {"role": "assistant", "content": "what?"}]
        before = draw.choice([[], earlier])
        own = [*before, {"role": "user", "content": parts_of(question, media)}]
        body["messages"] = [
            *before,
            {"role": "user", "content": _as_sent(parts_of(question, media))},
        ]
        if "prediction" in body:
            body["prediction"] = {"type": "content", "content": body["prediction"]}
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": options["logprobs"]}
        if draw.random() < 0.2:
            options["template_arguments"] = body["chat_template_kwargs"] = {"mood": 7}
        may_end = not {"ignore_eos", "min_new_tokens"} & options.keys()  # where its JSON does
        if name in WRITING and may_end and draw.random() < 0.2:
            schema = draw_schema(draw, depth=1)
            with may_refuse(InputError):
                options["logits_processors"] = [guide_of(name).matching(schema)]
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        asked = [Request(own, **options)]
        if "n" not in options and draw.random() < 0.4:
            return Call(RESPONSES, _as_response(body), asked, **timing)
        return Call(CHAT, body, asked, **timing)
    texts = [draw.choice(QUESTIONS) for _ in range(draw.choice([1, 1, 2]))]
    body["prompt"] = texts if len(texts) > 1 or draw.random() < 0.5 else texts[0]
    if draw.random() < 0.3:
        tokens = [[draw.randrange(3, 90) for _ in range(draw.randint(1, 9))] for _ in texts]
        body["prompt"] = tokens if len(tokens) > 1 else tokens[0]
        asked = [Request(Prompt(torch.tensor(one)), **options) for one in tokens]
        return Call(TEXT, body, asked, **timing)
    return Call(TEXT, body, [Request(text, raw=True, **options) for text in texts], **timing)


def _as_response(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a response that asks the same."""
    body = {name: value for name, value in chat.items() if name != "stream_options"}
    body["input"] = body.pop("messages")
    body["max_output_tokens"] = body.pop("max_tokens")
    if body.pop("logprobs", False):
        body["include"] = ["message.output_text.logprobs"]
    form = body.pop("response_format", None)
    if form is not None:
        body["text"] = {"format": {"type": "json_schema", "name": "f", **form["json_schema"]}}
    return body


def _as_sent(content: Any) -> Any:
    """With its pictures as data: URLs."""
    if isinstance(content, str):
        return content
    sent = []
    for part in content:
        if part["type"] == "image":
            file = io.BytesIO()
            part["image"].save(file, "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            sent.append({"type": "image_url", "image_url": {"url": url}})
        else:
            sent.append(part)
    return sent


async def _asked(app: Any, calls: Sequence[Call]) -> list[tuple[int | None, str]]:
    """(status, body) of each; a client that has left may have none."""
    from serving.asking import Visitor

    async def one(call: Call) -> tuple[int | None, str]:
        await asyncio.sleep(call.wait)
        visitor = Visitor(app, call.path, call.body)
        if call.leaves_after is not None:
            await asyncio.wait([visitor.task], timeout=call.leaves_after)
            visitor.leave()
        await visitor.task
        starts = [m["status"] for m in visitor.sent if m["type"] == "http.response.start"]
        return (starts[0] if starts else None), visitor.text

    async with app.router.lifespan_context(app), asyncio.timeout(120):
        return list(await asyncio.gather(*map(one, calls)))


def _compared(call: Call, status: int | None, text: str, exact: float) -> Iterator[str]:
    has_left = call.leaves_after is not None
    if has_left and (status is None or not text):
        return
    if status != 200:
        if not has_left:
            yield f"status {status}: {text}"
        return
    if call.path == RESPONSES:
        is_whole, choices, usage = _response(text, streams=bool(call.body.get("stream")))
        if not is_whole and not has_left:
            yield f"a response that did not end: {text[-200:]}"
            return
    elif call.body.get("stream"):
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        is_whole = bool(events) and events[-1] == "[DONE]"
        if not is_whole and not has_left:
            yield f"a stream that ended by {events[-1:]}"
            return
        bodies = [json.loads(event) for event in events if event != "[DONE]"]
        if any("error" in body for body in bodies):
            yield f"an error in a stream: {bodies[-1]}"
            return
        choices = _joined(bodies, len(call.samples))
        usage = next((body["usage"] for body in bodies if body.get("usage")), None)
        wants_usage = bool(call.body.get("stream_options"))
        if is_whole and (usage is not None) != wants_usage:
            yield f"usage {usage}, asked {wants_usage}"
    else:
        body, is_whole = json.loads(text), True
        usage = body["usage"]
        choices = [_choice(choice) for choice in body["choices"]]
        if [choice["index"] for choice in body["choices"]] != list(range(len(call.samples))):
            yield f"choices {[choice['index'] for choice in body['choices']]}"
            return
    for number, (choice, right) in enumerate(zip(choices, call.samples, strict=True)):
        yield from (f"choice {number}: {w}" for w in _of_choice(choice, right, is_whole, exact))
    if usage is not None and is_whole:
        said = sum(len(sample.tokens) for sample in call.samples)
        asked = sum(results[0].stats.prompt_tokens for results in call.expected)
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (asked, said):
            yield f"{usage}, expected {asked} and {said} tokens"


def _of_choice(
    choice: Mapping[str, Any], right: Result, is_whole: bool, exact: float
) -> Iterator[str]:
    said, wanted = choice["text"], right.text
    if said != (wanted if is_whole else wanted[: len(said)]):
        yield f"said {said!r}, plain {wanted!r}"
        return
    word = "length" if right.finish_reason == "length" else "stop"
    if is_whole and choice["finish_reason"] != word:
        yield f"ended by {choice['finish_reason']!r}, plain by {right.finish_reason!r}"
    if right.logprobs is None:
        if choice["logprobs"]:
            yield "log-probabilities that nobody asked for"
        return
    places = right.logprobs[:-1] if right.finish_reason == "eos" else right.logprobs
    values = [max(place.chosen.logprob, -9999.0) for place in places]
    told = [value for _, value in choice["logprobs"]]
    if is_whole and len(told) != len(values):
        yield f"{len(told)} log-probabilities of {len(values)}"
    if any(abs(a - b) > exact for a, b in zip(told, values, strict=False)):
        yield f"log-probabilities {told}, plain {values}"
    texts = [place.chosen.text or "" for place in places]
    if [token for token, _ in choice["logprobs"]] != texts[: len(told)]:
        yield f"tokens {choice['logprobs']}, plain {texts}"


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Of a chat or a completion, whole or a part of it, in one form."""
    message = choice.get("message") or choice.get("delta") or {}
    text = message.get("content") or "" if "text" not in choice else choice["text"]
    logprobs = choice.get("logprobs") or {}
    pairs = [(one["token"], one["logprob"]) for one in logprobs.get("content") or ()]
    if "tokens" in logprobs:
        pairs = list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))
    return {"text": text, "logprobs": pairs, "finish_reason": choice.get("finish_reason")}


def _response(text: str, *, streams: bool) -> tuple[bool, list[Any], dict[str, int] | None]:
    """(whether it has ended, its answer as a choice, usage by a chat's names)"""
    if streams:
        events = [json.loads(one.partition("data: ")[2]) for one in text.split("\n\n") if one]
        deltas = [one for one in events if one["type"] == "response.output_text.delta"]
        told = "".join(one["delta"] for one in deltas)
        pairs = [(p["token"], p["logprob"]) for one in deltas for p in one["logprobs"]]
        if not events or not events[-1]["type"].endswith(("completed", "incomplete")):
            return False, [{"text": told, "logprobs": pairs, "finish_reason": None}], None
        body = events[-1]["response"]
        assert told == body["output"][0]["content"][0]["text"]
    else:
        body = json.loads(text)
    (item,) = body["output"]
    (part,) = item["content"]
    pairs = [(place["token"], place["logprob"]) for place in part["logprobs"]]
    word = "length" if body["status"] == "incomplete" else "stop"
    usage = body["usage"]
    counts = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"]}
    return True, [{"text": part["text"], "logprobs": pairs, "finish_reason": word}], counts


def _joined(bodies: Sequence[Mapping[str, Any]], count: int) -> list[Any]:
    """The choices that a stream's events make up."""
    whole = [{"text": "", "logprobs": [], "finish_reason": None} for _ in range(count)]
    for body in bodies:
        for choice in body["choices"]:
            part, own = _choice(choice), whole[choice["index"]]
            assert own["finish_reason"] is None, "an event behind the last one"
            own["text"] += part["text"]
            own["logprobs"] += part["logprobs"]
            own["finish_reason"] = part["finish_reason"]
    return whole


def _accepted(status: int | None, text: str) -> int:
    """Of the first sample, where it is told."""
    try:
        told = json.loads(text)["mmspec"]
    except (ValueError, KeyError):
        return 0
    return int(told["accepted_tokens"])


def _shown(body: Mapping[str, Any]) -> str:
    return f"{ {name: str(value)[:200] for name, value in body.items()} }"
