"""The web application: one image in, score, verdict, map and nearest nominal patches out.

Images are decoded and scored one after another on one thread. The number of waiting requests is
limited, and so are the bytes and pixels of each. An image waits from when it has arrived, so that
slow uploads keep nobody from being served; only their bytes are limited. No image is stored, and no
path is accepted or sent.
"""

import asyncio
import base64
import io
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from jinja2 import Environment, StrictUndefined, select_autoescape
from PIL import Image
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.middleware.trustedhost import TrustedHostMiddleware

from patchcore.errors import InputError, above, counted
from patchcore.explanation import check_explains, own_crop
from patchcore.inspection import Broken, Inspection, Thresholds, inspect_image, judged, read_pixels
from patchcore.overlays import Pixels, heat, overlay
from patchcore.serving.uploads import (
    SEND,
    UPLOAD_SECONDS,
    Early,
    HeadAsGet,
    SameOrigin,
    early_answer,
    next_message,
    not_plain,
)

PICTURE = 1024  # px, longer side of a picture that is sent
MOST_REGIONS = 4  # whose patches are sent as pictures
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        upload: Largest size of an image's file, in bytes.
        megapixels: Largest size of an image, in megapixels.
        queue: Largest number of requests that run or wait; as many images of the largest size may
            be on their way at a time.
    """

    upload: int = 20_000_000
    megapixels: float = 50.0
    queue: int = 16

    def __post_init__(self) -> None:
        for key in ("upload", "megapixels", "queue"):
            if not getattr(self, key) > 0:
                raise InputError(f"{key} must be more than 0, got {getattr(self, key)}")


@dataclass(frozen=True)
class Refusal:
    """Answer to a request that is refused; `detail` says why."""

    detail: str


class Service:
    """A model that answers requests one after another, and counts them."""

    def __init__(self, inspector: Any, thresholds: Thresholds, limits: Limits) -> None:
        self.inspector = inspector
        self.limits = limits
        self.thresholds = thresholds.over(Thresholds.of(inspector.decision))
        # An image's own setting says what training could read; here whoever uploads is unknown.
        image = inspector.image
        self.megapixels = min(limits.megapixels, image.limit)
        self.explains = True
        try:
            check_explains(inspector)
        except InputError:
            self.explains = False
        self.pool = ThreadPoolExecutor(1, "inspection")
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "patchcore_images", "Images by their outcome", ["outcome"], registry=self.registry
        )
        for outcome in ("nominal", "anomalous", "no_verdict", "refused"):
            self.answers.labels(outcome)
        self.waiting = Gauge(
            "patchcore_requests_waiting", "Requests under way or waiting", registry=self.registry
        )
        self.seconds = Histogram(
            "patchcore_inspection_seconds", "Decoding and scoring", registry=self.registry
        )
        self._under_way = 0
        self._arriving = 0  # bytes of images that have not arrived as a whole

    async def answer(self, request: Request, pictures: bool) -> dict[str, Any]:
        """Return the answer to a request whose body is an image's file.

        Raises:
            HTTPException: It is refused; `detail` says why.
        """
        names = [name for name, _ in request.query_params.multi_items()]
        if unknown := sorted(set(names) - {"pictures"}):
            raise self._refused(
                422, f"there is no parameter {unknown[0]}: the only one is pictures", Early
            )
        if len(names) > 1:
            raise self._refused(422, f"pictures is given {len(names)} times: give it once", Early)
        if reason := not_plain(request):
            raise self._refused(415, reason, Early)
        size = request.headers.get("content-length", "0")
        if size.isdecimal() and int(size) > self.limits.upload:
            raise self._too_large(int(size), Early)
        self._check_queue(Early)
        try:
            body = await self._body(request)
            if not body:
                raise self._refused(422, f"the body is empty: {SEND}")
            self._check_queue(HTTPException)
            self._count(1)
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.pool, partial(self._inspect, body, pictures))
            finally:
                self._count(-1)
        except InputError as error:
            raise self._refused(422, str(error)) from None
        except asyncio.CancelledError:  # by the server, which was asked to end
            raise self._refused(503, "the server has been asked to end") from None

    async def misspelt(self, request: Request, _: Exception) -> Response:
        """Return the answer to a request whose parameter has a value of a wrong type."""
        told = "pictures must be true or false"  # the only parameter
        return await early_answer(request, self._refused(422, told, Early))

    def _check_queue(self, kind: type[HTTPException]) -> None:
        if self._under_way >= self.limits.queue:
            most = self.limits.queue
            told = f"{counted(most, 'request')} {'waits' if most == 1 else 'wait'} already"
            raise self._refused(503, f"{told}: try again later", kind)

    def _count(self, change: int) -> None:
        self._under_way += change
        self.waiting.set(self._under_way)

    async def _body(self, request: Request) -> bytes:
        """The body; if it is too large, the rest is read and dropped, so that the client gets the
        answer.
        """
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                while more:
                    message = await next_message(request.receive)
                    if message["type"] == "http.disconnect":  # nobody hears the answer
                        raise self._refused(
                            400, "the connection ended before the image had arrived"
                        )
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    size += len(chunk)
                    if size <= self.limits.upload:
                        self._arriving += len(chunk)
                        body += chunk
                        if self._arriving > self.limits.queue * self.limits.upload:
                            raise self._refused(
                                503, "too many images are on their way: try again later", Early
                            )
        except TimeoutError:
            raise self._refused(408, "the image did not arrive in time") from None
        finally:
            self._arriving -= len(body)
        if size > self.limits.upload:
            raise self._too_large(size)
        return bytes(body)

    def _too_large(self, size: int, kind: type[HTTPException] = HTTPException) -> HTTPException:
        most = self.limits.upload / 1e6
        sizes = f"{above(size / 1e6, most, 1)} MB, and at most {most:.12g} MB are taken"
        return self._refused(413, f"the file has {sizes}", kind)

    def _refused(
        self, status: int, detail: str, kind: type[HTTPException] = HTTPException
    ) -> HTTPException:
        self.answers.labels("refused").inc()
        return kind(status, detail)

    def _inspect(self, body: bytes, pictures: bool) -> dict[str, Any]:
        """Values of an `Inspection` without paths, and pictures as data URIs if asked for."""
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="patchcore-") as folder:
            path = Path(folder) / "image"
            path.write_bytes(body)
            result = inspect_image(
                self.inspector, path, self.thresholds, self.explains, self.megapixels
            )
            if isinstance(result, Broken):
                raise InputError(_told(result.reason, path))
            values = result.values()
            if pictures:
                pixels = read_pixels(self.inspector, path, self.megapixels)
                values.update(self._pictures(result, pixels))
        del values["path"]
        for region in values["regions"] or ():
            region.get("nearest", {}).pop("image", None)
        self.answers.labels(values["verdict"] or "no_verdict").inc()
        self.seconds.observe(time.perf_counter() - started)
        return values

    def _pictures(self, result: Inspection, pixels: Pixels) -> dict[str, Any]:
        placed = self.inspector.place(result.map, result.size)
        own = judged(self.inspector, result, placed)
        found: dict[str, Any] = {
            "map_picture": _uri(heat(pixels, placed, self.thresholds.pixel)),
            "overlay_picture": _uri(overlay(pixels, own, self.thresholds.pixel)),
        }
        found["patches"] = [
            {
                "own": _uri(own_crop(pixels, region.at, self.inspector.image)),
                "nominal": None if region.nearest is None else _uri(region.nearest.crop),
            }
            for region in (result.regions or [])[:MOST_REGIONS]
        ]
        return found


def create_app(
    inspector: Any,
    thresholds: Thresholds | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "[::1]"),
) -> FastAPI:
    """Return the application that serves a model.

    Args:
        inspector: An `Inspector`, or an exported model.
        thresholds: Replace those of the model's decision, unless they are None.
        limits: Limits of a request.
        hosts: Host names that are accepted, so that scripts of other sites cannot reach it by
            theirs.
    """
    service = Service(inspector, thresholds or Thresholds(), limits or Limits())
    app = FastAPI(title="patchcore", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(Early, early_answer)
    app.add_exception_handler(RequestValidationError, service.misspelt)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SameOrigin)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    page = _page(service)

    @app.get("/", response_class=HTMLResponse)
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.post("/inspect", responses={422: {"model": Refusal}})
    async def inspect(request: Request, pictures: bool = False) -> dict[str, Any]:
        return await service.answer(request, pictures)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "verdicts": service.thresholds.image is not None}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _page(service: Service) -> str:
    text = resources.files("patchcore.serving").joinpath("templates/page.html").read_text("utf-8")
    environment = Environment(autoescape=select_autoescape(default=True), undefined=StrictUndefined)
    return environment.from_string(text).render(
        upload=service.limits.upload,
        megapixels=service.megapixels,
        threshold=service.thresholds.image,
    )


def _told(reason: str, path: Path) -> str:
    """Reason of a refusal, without local paths and without advice for the server's owner."""
    words = reason.removeprefix(f"{path}: ").replace(str(path), "the image")
    return words.partition(". Raise image.limit")[0]


def _uri(pixels: Pixels | None) -> str | None:
    """A picture (H, W, 3) as a data URI, shrunk to at most `PICTURE` px."""
    if pixels is None:
        return None
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((PICTURE, PICTURE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
