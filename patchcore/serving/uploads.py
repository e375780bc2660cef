"""Checks of requests by their headers, and answers that do not wait for the rest of a body."""

import asyncio
import contextlib
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

STALL_SECONDS = 10.0  # longest wait for the next bytes of a body
UPLOAD_SECONDS = 60.0  # for the body of a request to arrive
SEND = "send the image's file itself, such as with curl --data-binary @image.png"


class Early(HTTPException):
    """A refusal before the body has arrived."""


class EarlyResponse(JSONResponse):
    """The answer to a request whose body may not have arrived.

    The client gets it at once. What it sends nevertheless is read and dropped, as closing the
    connection before would take the answer away from clients that send first and then read.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__({"detail": detail}, status, {"connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then read the rest of the body, for a limited time."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):  # cancelled: server ends
            async with asyncio.timeout(UPLOAD_SECONDS):
                while (await next_message(receive)).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def not_plain(request: Request) -> str | None:
    """Return why a body is no image's file by its headers, and what to send; None if it may be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return f"the body is a form ({kind}): {SEND}"
    codings = ",".join(request.headers.getlist("content-encoding")).lower()
    for coding in map(str.strip, codings.split(",")):
        if coding not in ("", "identity"):
            return f"the body is compressed (Content-Encoding: {coding}): {SEND}"
    return None


class SameOrigin:
    """Middleware that refuses requests which pages of other sites have made.

    Browsers name a page's origin with each request that may change something or whose answer the
    page may read. Programs name none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "http":
            headers = HTTPConnection(scope).headers
            origins = headers.getlist("origin")
            if any(_host(origin) != headers.get("host", "").lower() for origin in origins):
                detail = f"pages of {origins[0]} may not use this server: open its own page"
                await EarlyResponse(403, detail)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class HeadAsGet:
    """Middleware by which HEAD is answered as GET; the server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, HEAD as GET."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


async def early_answer(_: Request, error: Exception) -> EarlyResponse:
    """Return the answer to a request that was refused early."""
    assert isinstance(error, Early)
    return EarlyResponse(error.status_code, str(error.detail))


async def next_message(receive: Receive) -> Any:
    """Return the next message of a request.

    Raises:
        TimeoutError: Nothing came for `STALL_SECONDS`.
    """
    async with asyncio.timeout(STALL_SECONDS):
        return await receive()


def _host(origin: str) -> str:
    """Host and port of an origin such as http://localhost:8000; empty for `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # an open bracket
        return ""
