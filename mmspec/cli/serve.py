"""`mmspec serve`: one model behind OpenAI's HTTP API."""

import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mmspec.cli import options
from mmspec.cli.console import (
    EXIT_INTERRUPTED,
    consoles,
    mistakes_told,
    printable,
    quiet_transformers,
)
from mmspec.cli.loading import Loading
from mmspec.cli.options import option, switch

if TYPE_CHECKING:
    from mmspec import Engine
    from mmspec.serving import ServerSettings

_KEY_VARIABLE = "MMSPEC_API_KEY"
_ADDRESS, _CLIENTS, _LIMITS = "Address", "Clients", "Limits"
_OF_STRANGERS = (  # who may send whatever they like: --set lays others over it
    "inputs.allow_files=false",
    "inputs.max_request_pixels=256000000",
    "inputs.max_request_bytes=134217728",
)
_HERE = ("127.0.0.1", "::1", "localhost")


def serve(
    model: options.Model,
    host: Annotated[
        str, option("ADDRESS", "0.0.0.0: for other machines too.", _ADDRESS)
    ] = "127.0.0.1",
    port: Annotated[int, option("N", "0: any that is free.", _ADDRESS)] = 8000,
    name: Annotated[
        str | None,
        option("NAME", "Of the model, as clients call it.", _CLIENTS, show_default="MODEL"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        option(
            "KEY", f"Clients must send it; may be repeated. Also in ${_KEY_VARIABLE}.", _CLIENTS
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        option("ORIGIN", "Web pages from there may ask; may be repeated.", _CLIENTS),
    ] = None,
    rows: Annotated[
        int | None,
        option("N", "So many are decoded together, in place of decode.max_rows.", _LIMITS, min=1),
    ] = None,
    waiting: Annotated[
        int, option("N", "So many more may wait; others are told to come back.", _LIMITS, min=0)
    ] = 64,
    max_tokens: Annotated[
        int, option("N", "Of an answer whose request does not say.", _LIMITS, min=1)
    ] = 4096,
    max_images: Annotated[
        int, option("N", "Of a request, videos and recordings too.", _LIMITS, min=0)
    ] = 32,
    max_body: Annotated[
        int, option("MIB", "Of a request, images and recordings too.", _LIMITS, min=1)
    ] = 64,
    max_bodies: Annotated[
        int, option("MIB", "Of all requests that are read or prepared at a time.", _LIMITS, min=1)
    ] = 1024,
    connections: Annotated[
        int, option("N", "So many may be open at a time.", _LIMITS, min=1)
    ] = 512,
    receive: Annotated[
        float, option("SECONDS", "Within which a request must have been sent.", _LIMITS)
    ] = 60,
    timeout: Annotated[float, option("SECONDS", "Of a request, waiting included.", _LIMITS)] = 600,
    grace: Annotated[
        float, option("SECONDS", "For what is under way at the end.", _LIMITS, min=0)
    ] = 30,
    drafter: options.Drafter = None,
    config: options.ConfigName = None,
    overrides: options.Overrides = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quiet: Annotated[bool, switch("--quiet", "No line a request.")] = False,
) -> None:
    """Serve a model by OpenAI's HTTP API: chats with images, streams, tools, logprobs.

    Requests are decoded together; the text of none depends on the others. Images come as data:
    URLs; paths of this machine are refused, and addresses unless --set inputs.allow_http=true,
    with which those of the internet are fetched.
    """
    _, stderr = consoles()
    with mistakes_told(stderr):
        rules = [*_OF_STRANGERS, *(overrides or ())]
        rules += [] if rows is None else [f"decode.max_rows={rows}"]
        loading = Loading(model, config, rules, dtype, device, drafter)
        from mmspec.serving import ServerSettings, check_extra

        check_extra()
        keys = [*(api_key or ()), *filter(None, [os.environ.get(_KEY_VARIABLE)])]
        settings = ServerSettings(
            name=name or model,
            api_keys=tuple(keys),
            cors_origins=tuple(cors_origin or ()),
            max_waiting=waiting,
            max_connections=connections,
            max_body_bytes=max_body * 2**20,
            max_held_bytes=max(max_bodies, max_body) * 2**20,
            receive_s=receive,
            max_media=max_images,
            default_max_tokens=max_tokens,
            timeout_s=timeout,
            grace_s=grace,
        )
        quiet_transformers()
        from mmspec.serving.server import listening, serve_at

        with listening(host, port) as sock:  # a taken port is told before the weights are read
            with stderr.status("Loading the model"):
                engine = loading.load()
            _log_to_stderr(quiet=quiet)
            shown_port = sock.getsockname()[1]
            stderr.print(start_panel(stderr, engine, settings, host=host, port=shown_port))
            try:
                serve_at(sock, engine, settings)
            except KeyboardInterrupt as error:  # uvicorn raises it again, when all has ended
                raise typer.Exit(EXIT_INTERRUPTED) from error


def start_panel(
    console: Console, engine: "Engine", settings: "ServerSettings", *, host: str, port: int
) -> Panel | Text:
    """What runs where, and a first request to try; plain lines where it is no terminal."""
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    drafters = " + ".join(drafter.name for drafter in engine.drafters) or "none"
    lines = {
        "model": f"{settings.name} on {engine.target.device}",
        "drafter": drafters,
        "address": address,
        "rows": f"{engine.max_rows} together, {settings.max_waiting} waiting",
    }
    if not settings.api_keys and host not in _HERE:
        lines["keys"] = "none: whoever reaches this address may ask (--api-key)"
    elif settings.api_keys:
        lines["keys"] = f"{len(settings.api_keys)} (Authorization: Bearer ...)"
    key = ' -H "Authorization: Bearer $KEY"' if settings.api_keys else ""
    content = '{"messages": [{"role": "user", "content": "Hello"}]}'
    curl = f"curl {address}/chat/completions{key} \\\n  -H 'Content-Type: application/json' \\\n"
    curl += f"  -d '{content}'"
    if not console.is_terminal:
        told = " · ".join(f"{name} {value}" for name, value in lines.items())
        return Text(printable(told))
    table = Table.grid(padding=(0, 2))
    for name, value in lines.items():
        table.add_row(Text(name, style="dim"), Text(printable(value)))
    table.add_row("", "")
    table.add_row(Text("try", style="dim"), Text(curl, style="cyan"))
    return Panel(table, title="mmspec serve", title_align="left", expand=False)


def _log_to_stderr(*, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("mmspec", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
    if not quiet:
        logging.getLogger("mmspec.serving.access").setLevel(logging.INFO)
