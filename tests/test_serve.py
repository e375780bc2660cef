"""The page and the endpoint: what they show, what they refuse, and that nothing grows."""

import asyncio
import contextlib
import gzip
import io
import json
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from patchcore import GreedyConfig, InputError, Inspector, PatchCore, artifact
from patchcore.data.synthesis import draw_texture
from patchcore.data.transforms import ImageConfig, build_preparation
from patchcore.data.view import View
from patchcore.explanation import cut_crops
from patchcore.inspection import Inspection, Thresholds, predict
from patchcore.inspector import normalised
from tests.runs import patchcore

pytest.importorskip("fastapi", reason="needs the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")
from fastapi import Request, Response  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from patchcore.serving.app import Limits, create_app  # noqa: E402

SIZE = 96
IMAGE = ImageConfig(size=64, view=View.whole)
LIMITS = Limits(upload=2_000_000, megapixels=50.0, queue=16)
CHROMIUM = shutil.which("chromium")
MAIN = "from patchcore.commands import main; main()"


def texture(seed: int, defect: str | None = None) -> NDArray[np.uint8]:
    return draw_texture(np.random.default_rng(seed), SIZE, defect)[0]


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


GOOD, STAINED = png(texture(100)), png(texture(7, "blot"))


def huge() -> bytes:
    """200 megapixels in a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> Inspector:
    folder = tmp_path_factory.mktemp("nominal")
    prepare, unmarked = build_preparation(IMAGE), np.zeros((SIZE, SIZE), bool)
    paths = [folder / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        path.write_bytes(png(texture(i)))
    batch = np.stack([prepare(texture(i), unmarked, 0)[0] for i in range(12)])
    model = PatchCore(coreset=GreedyConfig(ratio=0.2))
    model.fit(normalised(torch.from_numpy(batch), IMAGE))
    found = Inspector(model, IMAGE, details={"sources": [str(path) for path in paths]})
    found.crops = cut_crops(found)
    return found


@pytest.fixture(scope="module")
def expected(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> list[Inspection]:
    """Results of `predict` for the good and the stained image."""
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / "good.png", folder / "stained.png"]
    for path, data in zip(paths, (GOOD, STAINED), strict=True):
        path.write_bytes(data)
    found = [x for x in predict(inspector, paths) if isinstance(x, Inspection)]
    assert found[0].score < found[1].score
    return found


@pytest.fixture(scope="module")
def thresholds(expected: list[Inspection]) -> Thresholds:
    good, stained = expected
    return Thresholds((good.score + stained.score) / 2, 0.9 * float(stained.map.max()))


@pytest.fixture
def client(inspector: Inspector, thresholds: Thresholds) -> Iterator[TestClient]:
    app = create_app(inspector, thresholds, LIMITS)
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found


def test_answers_are_those_of_predict(
    client: TestClient, expected: list[Inspection], thresholds: Thresholds
) -> None:
    good, stained = (client.post("/inspect", content=x).json() for x in (GOOD, STAINED))
    assert [good["verdict"], stained["verdict"]] == ["nominal", "anomalous"]
    for answer, inspection in zip((good, stained), expected, strict=True):
        assert answer["score"] == pytest.approx(inspection.score, rel=1e-5)
        assert (answer["width"], answer["height"]) == (SIZE, SIZE)
        assert "path" not in answer
    assert good["regions"] == []
    region = stained["regions"][0]
    assert region["peak"] >= (thresholds.pixel or 0)
    assert set(region["nearest"]) == {"row", "column", "score"}  # no path of a nominal image


def test_pictures_come_if_asked_for(client: TestClient) -> None:
    answer = client.post("/inspect?pictures=true", content=STAINED).json()
    uris = [answer["map_picture"], answer["overlay_picture"]]
    (patch, *_) = answer["patches"]
    for uri in (*uris, patch["own"], patch["nominal"]):
        assert uri.startswith("data:image/jpeg;base64,")
    assert "map_picture" not in client.post("/inspect", content=STAINED).json()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"just some words", 422, "cannot be read as an image"),
        (b"", 422, "the body is empty: send the image's file itself"),
        (STAINED[: len(STAINED) // 2], 422, "cannot be read as an image"),
        (huge(), 422, "has 20000×10000 pixels, 200 megapixels; at most 50 are decoded"),
        (bytes(50_000_000), 413, "the file has 50.0 MB, and at most 2 MB are taken"),
    ],
    ids=["text", "empty", "cut off", "200 megapixels", "50 MB"],
)
def test_what_is_no_image_is_refused(
    client: TestClient, content: bytes, status: int, words: str
) -> None:
    answer = client.post("/inspect", content=content)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert "/" not in answer.json()["detail"]  # no path
    assert client.post("/inspect", content=GOOD).status_code == 200


def test_sizes_above_a_limit_differ_from_it(inspector: Inspector) -> None:
    limits = Limits(upload=len(GOOD) - 1)
    app = create_app(inspector, limits=limits)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        told = client.post("/inspect", content=GOOD).json()["detail"]
    found = re.fullmatch(r"the file has (\S+) MB, and at most (\S+) MB are taken", told)
    assert found is not None
    assert float(found[1]) > float(found[2]) == limits.upload / 1e6


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/openapi.json", "/missing"])
def test_head_is_answered_as_get_without_a_body(path: str, client: TestClient) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == (404 if path == "/missing" else 200)
    assert head.headers == get.headers and head.content == b""


def test_head_of_what_takes_images_alone_is_refused(client: TestClient) -> None:
    answer = client.head("/inspect")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_an_address_with_a_slash_too_many_is_not_found(client: TestClient) -> None:
    """A redirection would lose the image, unless the client follows it."""
    answer = client.post("/inspect/", content=GOOD, follow_redirects=False)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_health_and_metrics(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "verdicts": True}
    for content in (GOOD, STAINED, STAINED, b"words"):
        client.post("/inspect", content=content)
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'patchcore_images_total{outcome="nominal"} 1.0',
        'patchcore_images_total{outcome="anomalous"} 2.0',
        'patchcore_images_total{outcome="refused"} 1.0',
        "patchcore_requests_waiting 0.0",
        "patchcore_inspection_seconds_count 3.0",
    ):
        assert line in lines


def test_requests_beyond_the_queue_are_told_to_come_again(
    inspector: Inspector, thresholds: Thresholds
) -> None:
    app = create_app(inspector, thresholds, Limits(queue=2))
    begun, go_on = threading.Semaphore(0), threading.Event()
    score = inspector.score

    def slow(batch: Any) -> Any:
        begun.release()
        assert go_on.wait(60)
        return score(batch)

    with (
        mock.patch.object(inspector, "score", slow),
        TestClient(app, base_url="http://localhost") as client,
        ThreadPoolExecutor(2) as pool,
    ):
        under_way = [pool.submit(client.post, "/inspect", content=GOOD) for _ in range(2)]
        assert begun.acquire(timeout=60)
        while "patchcore_requests_waiting 2.0" not in client.get("/metrics").text:
            pass
        third = client.post("/inspect", content=GOOD)
        go_on.set()
        assert third.status_code == 503
        assert third.json()["detail"] == "2 requests wait already: try again later"
        assert [each.result().status_code for each in under_way] == [200, 200]


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/inspect",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
}


def upload(inspector: Inspector, receive: Callable[[], Awaitable[dict[str, Any]]]) -> int:
    """Status of the answer to a request whose body comes from `receive`."""
    app, sent = create_app(inspector), []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(SCOPE, receive, send))
    return int(sent[0]["status"])


def test_a_body_that_does_not_arrive_is_given_up(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchcore.serving.app.UPLOAD_SECONDS", 0.0)

    async def wait() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    assert upload(inspector, wait) == 408


def test_who_hangs_up_before_the_end_of_an_upload_leaves_no_traceback(inspector: Inspector) -> None:
    async def hang_up() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert upload(inspector, hang_up) == 400


def test_other_names_do_not_reach_it(inspector: Inspector) -> None:
    app = create_app(inspector)
    with TestClient(app, base_url="http://elsewhere.example") as client:
        assert client.get("/health").status_code == 400


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null", "http://127.0.0.1:9", "["])
def test_pages_of_other_sites_do_not_reach_it(client: TestClient, origin: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    answer = client.post("/inspect", content=GOOD, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["detail"].startswith(f"pages of {origin} may not use this server")
    own = client.post("/inspect", content=GOOD, headers={"Origin": "http://127.0.0.1"})
    assert own.status_code == 200
    assert "patchcore_inspection_seconds_count 1.0" in client.get("/metrics").text


def test_a_parameter_that_does_not_exist_is_refused(client: TestClient) -> None:
    answer = client.post("/inspect?pictures=false&threshold=9", content=GOOD)
    assert answer.status_code == 422
    assert answer.json()["detail"] == ("there is no parameter threshold: the only one is pictures")


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("pictures=true&pictures=false", "pictures is given 2 times: give it once"),
        ("pictures=maybe", "pictures must be true or false"),
    ],
)
def test_a_parameter_that_tells_nothing_is_refused(
    client: TestClient, query: str, detail: str
) -> None:
    answer = client.post(f"/inspect?{query}", content=GOOD)
    assert (answer.status_code, answer.json()) == (422, {"detail": detail})
    assert 'patchcore_images_total{outcome="refused"} 1.0' in client.get("/metrics").text
    schema = client.get("/openapi.json").json()
    (told,) = schema["components"]["schemas"]["Refusal"]["properties"].values()
    assert told["type"] == "string"
    assert "HTTPValidationError" not in schema["components"]["schemas"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"files": {"image": GOOD}}, "the body is a form (multipart/form-data): send the image's"),
        (
            {"content": gzip.compress(GOOD), "headers": {"Content-Encoding": "gzip"}},
            "the body is compressed (Content-Encoding: gzip): send the image's file itself",
        ),
        (
            {"content": GOOD, "headers": {"Content-Encoding": "identity, br"}},
            "the body is compressed (Content-Encoding: br): send the image's file itself",
        ),
    ],
    ids=["form", "gzip", "br"],
)
def test_a_body_in_another_form_is_refused_as_what_it_is(
    client: TestClient, asked: dict[str, Any], told: str
) -> None:
    answer = client.post("/inspect", **asked)
    assert answer.status_code == 415
    assert answer.json()["detail"].startswith(told)
    assert "curl --data-binary @image.png" in answer.json()["detail"]


def test_the_body_of_curl_is_taken(client: TestClient) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "identity"}
    assert client.post("/inspect", content=GOOD, headers=headers).status_code == 200


def test_without_thresholds_there_is_no_verdict(inspector: Inspector) -> None:
    with TestClient(create_app(inspector), base_url="http://localhost") as client:
        answer = client.post("/inspect?pictures=true", content=STAINED).json()
        assert (answer["verdict"], answer["p_value"], answer["regions"]) == (None, None, None)
        assert answer["patches"] == []
        assert "there are no verdicts" in client.get("/").text


@pytest.mark.parametrize("key", ["upload", "megapixels", "queue"])
def test_limits_are_positive(key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} must be more than 0, got 0"):
        Limits(**{key: 0})


# --- a real server ----------------------------------------------------------------------------


class Server:
    """The application on a port of this machine."""

    def __init__(self, app: Any) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))

    def __enter__(self) -> str:
        self.thread.start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


def begin(url: str, size: int) -> socket.socket:
    """A connection that has sent three bytes of an upload of so many."""
    port = int(url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /inspect HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + b"abc")
    return connection


def test_uploads_that_stall_keep_nobody_waiting(
    inspector: Inspector, thresholds: Thresholds
) -> None:
    import httpx2 as httpx

    with Server(create_app(inspector, thresholds, Limits(queue=2))) as url:
        stalled = [begin(url, 5000) for _ in range(5)]
        answer = httpx.post(f"{url}/inspect", content=GOOD, timeout=60, trust_env=False)
        for connection in stalled:
            connection.close()
    assert answer.json()["verdict"] == "nominal"


def test_a_stalled_upload_is_given_up(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchcore.serving.uploads.STALL_SECONDS", 0.1)
    with Server(create_app(inspector)) as url, begin(url, 5000) as connection:
        assert connection.recv(12) == b"HTTP/1.1 408"


def test_bytes_on_their_way_are_limited(inspector: Inspector) -> None:
    async def endless() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": bytes(600), "more_body": True}

    async def ask(app: Any) -> int:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message.get("more_body"):
                raise asyncio.CancelledError  # the answer has come

        with contextlib.suppress(asyncio.CancelledError):
            await app(SCOPE, endless, send)
        return int(sent[0]["status"])

    async def both() -> list[int]:
        app = create_app(inspector, limits=Limits(upload=1000, queue=1))
        waiting = asyncio.Event()

        async def stalling() -> dict[str, Any]:
            if waiting.is_set():
                await asyncio.Event().wait()
            waiting.set()
            return {"type": "http.request", "body": bytes(600), "more_body": True}

        async def ignore(_: dict[str, Any]) -> None:
            pass

        first = asyncio.create_task(app(SCOPE, stalling, ignore))
        await waiting.wait()
        found = [await ask(app)]
        first.cancel()
        await first
        return found

    assert asyncio.run(both()) == [503]


def test_a_size_above_the_limit_is_refused_before_the_file_arrives(inspector: Inspector) -> None:
    app = create_app(inspector, limits=LIMITS)
    with Server(app) as url, begin(url, 50_000_000) as connection:
        received = b""
        while b"are taken" not in received:
            received += connection.recv(1000)
    assert received.startswith(b"HTTP/1.1 413")
    assert b"the file has 50.0 MB, and at most 2 MB are taken" in received


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_soon_though_an_upload_is_open(
    inspector: Inspector, kind: signal.Signals, tmp_path: Path
) -> None:
    artifact.save(inspector, tmp_path / "model", weights=True)
    port = free_port()
    command = [sys.executable, "-c", MAIN, "serve", str(tmp_path / "model")]
    with subprocess.Popen(
        [*command, f"--port={port}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                assert process.poll() is None, process.communicate()
                with contextlib.suppress(OSError):
                    upload = begin(f"http://127.0.0.1:{port}", 5000)
                    break
                time.sleep(0.05)
            with upload, begin(f"http://127.0.0.1:{port}", 50_000_000) as refused:
                assert refused.recv(12) == b"HTTP/1.1 413"  # so the other has arrived, too
                process.send_signal(kind)
                err = process.communicate(timeout=60)[1]
                assert upload.recv(12) == b"HTTP/1.1 503"
        finally:
            process.kill()
    assert process.returncode == 128 + kind
    assert "Traceback" not in err
    assert "interrupted" in err


PROBE = """
<script>
addEventListener("load", async () => {
  const seen = {};
  const choose = async (name, blob) => {
    const files = new DataTransfer();
    files.items.add(new File([blob], name));
    at("file").files = files.files;
    at("file").dispatchEvent(new Event("change"));
    while (at("result").hidden && (!at("message").textContent ||
           at("message").textContent.startsWith("Inspecting"))) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const pictures = at("result").hidden ? [] : [...at("result").querySelectorAll("img")];
    await Promise.all(pictures.map((image) => image.decode()));
    seen[name] = {
      message: at("message").textContent,
      verdict: at("result").hidden ? null : at("verdict").textContent,
      pictures: pictures.map((image) => [image.alt, image.naturalWidth]),
    };
  };
  for (const name of ["stained", "good", "huge"]) {
    await choose(name, await (await fetch(`sample/${name}`)).blob());
  }
  await choose("text", new Blob(["just some words"]));
  await choose("large", new Blob([new Uint8Array(50_000_000)]));
  await fetch("seen", { method: "POST", body: JSON.stringify(seen) });
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")
def test_the_page_in_a_browser(
    inspector: Inspector, thresholds: Thresholds, tmp_path: Path
) -> None:
    app = create_app(inspector, thresholds, LIMITS)
    samples = {"stained": STAINED, "good": GOOD, "huge": huge()}
    page = TestClient(app, base_url="http://127.0.0.1").get("/")
    told: queue.Queue[dict[str, Any]] = queue.Queue()

    @app.get("/sample/{name}")
    async def sample(name: str) -> Response:
        return Response(samples[name])

    @app.get("/probed")
    async def probed() -> Response:
        text = page.text.replace("</body>", f"{PROBE}</body>")
        policy = page.headers["content-security-policy"]
        headers = {"content-security-policy": policy}
        return Response(text, media_type="text/html", headers=headers)

    @app.post("/seen")
    async def seen_there(request: Request) -> None:
        told.put(json.loads(await request.body()))

    log = tmp_path / "log"
    with Server(app) as url, log.open("w") as file:
        command = [
            *(CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-sync", "--disable-component-update"),
            *("--enable-logging=stderr", "--remote-debugging-port=0"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"{url}/probed"),
        ]
        browser = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            seen = told.get(timeout=120)
        except queue.Empty:
            raise AssertionError(log.read_text()) from None
        finally:
            browser.terminate()
            browser.wait()
    assert seen["stained"]["verdict"] == "anomalous"
    regions, whole, own, nominal, *_ = seen["stained"]["pictures"]
    assert regions == ["Anomalous regions", SIZE] and whole == ["Anomaly map", SIZE]
    assert own[0] == "here" and nominal == ["nearest nominal", 48]
    assert seen["good"]["verdict"] == "nominal"
    for name, words in {
        "huge": "Refused: has 20000×10000 pixels, 200 megapixels; at most 50 are decoded",
        "text": "Refused: cannot be read as an image",
        "large": "The file has 50.0 MB, and at most 2 MB are taken.",
    }.items():
        assert seen[name]["verdict"] is None
        assert seen[name]["message"].startswith(words)
    messages = [line for line in log.read_text().splitlines() if "CONSOLE" in line]
    assert all("status of 422" in line for line in messages)  # the two that were refused


def test_eight_clients_at_once(inspector: Inspector, thresholds: Thresholds) -> None:
    """Every answer is right, whatever the others ask, and nothing is left behind.

    `python -m tests.test_serve` does so for 60 s and tells how memory went.
    """
    app = create_app(inspector, thresholds, LIMITS)
    with Server(app) as url:
        outcomes, threads = load(url, 8, 24)
    assert outcomes == {"nominal": 8, "anomalous": 8, "refused": 8}
    assert threads <= 8 + 4


def load(url: str, clients: int, requests: int) -> tuple[dict[str, int], int]:
    """Outcomes of so many requests, a third of each kind, and the most threads meanwhile."""
    import httpx2 as httpx

    cases = [(GOOD, "nominal"), (STAINED, "anomalous"), (b"words", "refused")]
    outcomes: dict[str, int] = {}
    most = before = threading.active_count()

    def ask(number: int) -> str:
        nonlocal most
        content, right = cases[number % 3]
        answer = httpx.post(f"{url}/inspect", content=content, timeout=60, trust_env=False)
        most = max(most, threading.active_count())
        found = answer.json().get("verdict", "refused")
        assert found == right, answer.text
        return str(found)

    with ThreadPoolExecutor(clients) as pool:
        for outcome in pool.map(ask, range(requests)):
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes, most - before


# --- the command ------------------------------------------------------------------------------


class Served:
    """Application that the command has served, and addresses that it has listened on."""

    app: Any
    addresses: list[Any]


@contextlib.contextmanager
def served() -> Iterator[Served]:
    """Let the command end where it would serve."""
    seen = Served()

    def run(server: Any, sockets: list[socket.socket]) -> None:
        seen.app, seen.addresses = server.config.app, [each.getsockname() for each in sockets]

    with mock.patch.object(uvicorn.Server, "run", run):
        yield seen


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_the_command_serves_this_machine_alone(inspector: Inspector, tmp_path: Path) -> None:
    artifact.save(inspector, tmp_path / "model", weights=True)
    port = free_port()
    with served() as seen:
        done = patchcore("serve", str(tmp_path / "model"), "--threshold=1", f"--port={port}")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    assert seen.addresses == [("127.0.0.1", port)]
    with TestClient(seen.app, base_url="http://127.0.0.1") as client:
        answer = client.post("/inspect?pictures=true", content=STAINED).json()
    assert answer["verdict"] == "anomalous"
    done = patchcore("serve", str(tmp_path / "model"), "--port=99999")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: --port must be in [1, 65535], got 99999\n"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.2", "http://127.0.0.2"),
        ("::1", "http://[::1]"),
        ("[::1]", "http://[::1]"),
        ("0.0.0.0", "http://0.0.0.0"),
    ],
)
def test_the_address_that_the_command_prints_answers(
    inspector: Inspector, host: str, address: str, tmp_path: Path
) -> None:
    artifact.save(inspector, tmp_path / "model", weights=True)
    port = free_port()
    given = [str(tmp_path / "model"), "--threshold=1", f"--host={host}", f"--port={port}"]
    with served() as seen:
        done = patchcore("serve", *given)
    assert done.out == f"{address}:{port}/ (Ctrl-C ends it)\n"
    assert [each[:2] for each in seen.addresses] == [(host.strip("[]"), port)]
    with TestClient(seen.app, base_url=f"{address}:{port}") as client:
        assert client.get("/health").status_code == 200
        assert client.head("/health").status_code == 200
        elsewhere = client.get("/health", headers={"Host": "example.org"}).status_code
    assert elsewhere == (200 if host == "0.0.0.0" else 400)


def test_an_address_that_cannot_be_had_is_told_before_any_work(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = patchcore("serve", str(tmp_path), f"--port={port}")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: --port: {port} of 127.0.0.1 cannot be listened on (Address already in use): "
        "choose another port or host\n"
    )
    done = patchcore("serve", str(tmp_path), "--host=no.such.host.invalid")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: --host: no.such.host.invalid is no address of this machine")


def test_an_address_is_held_while_the_model_is_loaded(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two servers that start together is refused before it loads anything."""
    port, others = free_port(), []

    def load(*_: object, **__: object) -> Inspector:
        with mock.patch("patchcore.commands.serve.load_model", side_effect=AssertionError):
            others.append(patchcore("serve", str(tmp_path), f"--port={port}"))
        return inspector

    monkeypatch.setattr("patchcore.commands.serve.load_model", load)
    with served() as seen:
        done = patchcore("serve", str(tmp_path), "--threshold=1", f"--port={port}")
    assert (done.code, seen.addresses) == (0, [("127.0.0.1", port)])
    assert others[0].code == 1
    assert others[0].err.startswith(
        f"error: --port: {port} of 127.0.0.1 cannot be listened on (Address already in use)"
    )


def test_a_name_of_several_addresses_is_listened_on_at_those_that_are_there(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One may be named twice; where none is there, the command says so."""
    port = free_port()
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    here, elsewhere = ((*kind, (host, port)) for host in ("127.0.0.1", "192.0.2.1"))
    monkeypatch.setattr("patchcore.commands.serve.load_model", lambda *_, **__: inspector)
    for found, code in (([here, here, elsewhere], 0), ([elsewhere, here], 0), ([elsewhere], 1)):
        with served() as seen, mock.patch.object(socket, "getaddrinfo", return_value=found):
            done = patchcore("serve", str(tmp_path), "--threshold=1", f"--port={port}")
        assert done.code == code, done.err
        if code == 0:
            assert seen.addresses == [("127.0.0.1", port)]
        else:
            assert "(Cannot assign requested address): choose another port or host" in done.err


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1", "1e300", "many"])
def test_a_size_that_no_file_has_is_refused_by_its_option(size: str, tmp_path: Path) -> None:
    done = patchcore("serve", str(tmp_path), f"--megabytes={size}")
    assert done.code == 1
    assert re.fullmatch(rf"error: argument --megabytes: must be .*, got {size}\n", done.err)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"uvicorn": None}):
        done = patchcore("serve", str(tmp_path))
    assert done.code == 1
    assert done.err == "error: serve needs the package uvicorn: pip install 'patchcore[serve]'\n"


if __name__ == "__main__":
    import resource
    import tempfile

    class Folders:
        """Stands in for pytest's factory of temporary folders."""

        def mktemp(self, name: str) -> Path:
            return Path(tempfile.mkdtemp(prefix=name))

    served = inspector.__wrapped__(Folders())  # type: ignore[attr-defined]
    wanted = thresholds.__wrapped__(expected.__wrapped__(served, Folders()))  # type: ignore[attr-defined]
    with Server(create_app(served, wanted, LIMITS)) as address:
        start, done_requests = time.monotonic(), 0
        while time.monotonic() - start < 60:
            load(address, 8, 96)
            done_requests += 96
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{time.monotonic() - start:5.1f} s {done_requests:6} requests, peak {peak:.0f} MB"
            )
