"""Errors as OpenAI's API tells them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmspec.errors import ConfigError, InputError, MissingExtraError, TooLargeError


@dataclass(eq=False)
class ApiError(Exception):
    """What a client is told in place of an answer."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None  # the field of the body that it is about
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


_CLIENTS_WORDS = (
    ("min_new_tokens", "min_tokens"),
    (" (as overrides= of mmspec.load)", ""),
    ("download it and give the path", "send it as a data: URL"),
)


def as_api_error(error: BaseException, length_name: str = "max_tokens") -> ApiError:
    """What became of a request, for its client: its own mistake is told in full, of anything else
    no more than that it happened. `length_name`: of the field that says how long an answer is."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TooLargeError):
        return ApiError(413, str(error), code="request_too_large")
    if isinstance(error, InputError | ConfigError | MissingExtraError):  # of what was sent
        return ApiError(400, in_clients_words(error, length_name))
    return ApiError(500, "the request failed; the server's log says why", code="internal_error")


def in_clients_words(error: Exception, length_name: str) -> str:
    """The message, with OpenAI's names for what it speaks of."""
    told = str(error).replace("max_new_tokens", length_name)
    for own, theirs in _CLIENTS_WORDS:
        told = told.replace(own, theirs)
    return told


def refused(param: str, message: str) -> ApiError:
    """A field of the body cannot be taken as it is."""
    return ApiError(400, f"{param}: {message}", param=param)


def busy(why: str) -> ApiError:
    return ApiError(
        429,
        f"{why}; ask again in a moment",
        code="server_busy",
        headers={"Retry-After": "1"},
    )


def not_asked(kind: str) -> ApiError:
    """By a web page, which a browser lets send what forms may without asking the server first."""
    return ApiError(
        415, f"got Content-Type {kind!r:.80} from a web page; expected application/json"
    )


def too_slow(receive_s: float) -> ApiError:
    return ApiError(
        408,
        f"the body was not there within {receive_s:g} s; send a smaller one, or start the server "
        "with a longer --receive",
        code="timeout",
        headers={"Connection": "close"},
    )


def closing() -> ApiError:
    return ApiError(
        503,
        "the server is shutting down; ask another one, or again later",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )


def timed_out(timeout_s: float) -> ApiError:
    return ApiError(
        504,
        f"no whole answer within {timeout_s:g} s; ask for fewer tokens, or start the server with a "
        "longer --timeout",
        code="timeout",
        headers={"x-should-retry": "false"},  # OpenAI's client would ask twice more
    )
