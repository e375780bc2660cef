"""`patchcore serve`: a page and a JSON endpoint that inspect images with a fitted model."""

import argparse
import errno
import ipaddress
import math
import socket
from contextlib import ExitStack
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
STOP_SECONDS = 3  # that requests get when the server is asked to end; open uploads may never end
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
    host = options.host.strip("[]")
    limits = app.Limits(math.ceil(options.megabytes * 1e6), options.megapixels, options.queue)
    with ExitStack() as stack:
        sockets = _listening(host, options.port, stack)
        inspector = load_model(options.model, device=options.device)
        thresholds = asked_thresholds(options)
        warn_of_no_verdicts(inspector, thresholds)
        named = f"[{host}]" if ":" in host else host  # as an address of a page has it
        hosts = {"localhost", "127.0.0.1", "[::1]", named.lower()} if _is_loopback(host) else {"*"}
        application = app.create_app(inspector, thresholds, limits, sorted(hosts))
        print(f"http://{named}:{options.port}/ (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            application, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS
        )
        uvicorn.Server(config).run(sockets)


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


def _listening(host: str, port: int, stack: ExitStack) -> list[socket.socket]:
    """Listen on an address before the model is loaded, so that no other process takes it meanwhile.

    Args:
        host: Name or address of this machine.
        port: Port to listen on.
        stack: Closes the sockets when it ends.

    Raises:
        InputError: The host is none of this machine's, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host: {host} is no address of this machine ({reason})") from None
    sockets: list[socket.socket] = []
    addresses = list(dict.fromkeys(found))  # a file of hosts may name one twice
    for family, kind, protocol, _, address in addresses:
        try:
            each = stack.enter_context(socket.socket(family, kind, protocol))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # else it would take the port of IPv4, too
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(address)
            each.listen()  # until then, others may bind to the same address
        except OSError as error:
            last = address == addresses[-1][-1]
            if error.errno == errno.EADDRNOTAVAIL and (sockets or not last):
                continue  # such as localhost without IPv6
            raise InputError(
                f"--port: {port} of {host} cannot be listened on ({error.strerror}): choose "
                "another port or host"
            ) from None
        sockets.append(each)
    return sockets


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
