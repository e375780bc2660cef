"""`patchcore serve`: a page and a JSON endpoint that inspect images with a fitted model."""

import argparse
import ipaddress
import math
from importlib import import_module

from patchcore.commands.options import (
    Parser,
    add_model_options,
    asked_thresholds,
    score,
    warn_of_no_verdicts,
)
from patchcore.errors import InputError
from patchcore.export import load_model

LARGEST_FILE = 1e6  # megabytes
DESCRIPTION = """Serve a fitted model: a web page to drop an image on, and endpoints for programs.

  POST /inspect   an image's file as the body; JSON with score, p_value, verdict and regions
                  (?pictures=true adds map and overlay as data URIs)
  GET /health     answers as long as the server runs
  GET /metrics    counters and times for Prometheus

The server has no password. It answers only this machine unless --host says otherwise."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `patchcore serve MODEL`."""
    options = _parser().parse_args(arguments)
    try:
        uvicorn, app = import_module("uvicorn"), import_module("patchcore.serving.app")
    except ImportError as error:
        raise InputError(
            f"serve needs the package {error.name}: pip install 'patchcore[serve]'"
        ) from None
    if not 0 < options.port < 2**16:
        raise InputError(f"--port must be in [1, 65535], got {options.port}")
    limits = app.Limits(math.ceil(options.megabytes * 1e6), options.megapixels, options.queue)
    inspector = load_model(options.model, device=options.device)
    thresholds = asked_thresholds(options)
    warn_of_no_verdicts(inspector, thresholds)
    host = options.host.strip("[]")
    named = f"[{host}]" if ":" in host else host  # as an address of a page has it
    hosts = {"localhost", "127.0.0.1", "[::1]", named.lower()} if _is_loopback(host) else {"*"}
    application = app.create_app(inspector, thresholds, limits, sorted(hosts))
    print(f"http://{named}:{options.port}/ (Ctrl-C ends it)", flush=True)
    uvicorn.run(application, host=host, port=options.port, log_level="warning")


def _parser() -> Parser:
    parser = Parser(
        prog="patchcore serve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
    )
    add_model_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s, only this machine can connect)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        metavar="N",
        help="port to listen on (default: %(default)s)",
    )
    parser.add_argument(
        "--megabytes",
        type=_megabytes,
        default=20.0,
        metavar="N",
        help="largest file that is accepted (default: %(default)g)",
    )
    parser.add_argument(
        "--megapixels",
        type=float,
        default=50.0,
        metavar="N",
        help="largest image that is accepted (default: %(default)g)",
    )
    parser.add_argument(
        "--queue",
        type=int,
        default=16,
        metavar="N",
        help="number of requests that may wait; further ones are refused with 503 (default: "
        "%(default)s)",
    )
    return parser


def _megabytes(text: str) -> float:
    value = score(text)
    if not 0 < value <= LARGEST_FILE:
        raise argparse.ArgumentTypeError(f"must be in (0, {LARGEST_FILE:g}], got {text}")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
