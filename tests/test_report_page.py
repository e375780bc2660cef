import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patchcore.commands import report as command
from patchcore.report import charts, page
from patchcore.report.charts import Mark, Series
from patchcore.report.galleries import SMALLEST_GALLERY
from patchcore.report.table import read_runs
from tests.run_folders import write_run, write_sweep

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--window-size=1280,900",
    "--dump-dom",
)
PROBE = """
<script>
addEventListener("load", async () => {
  const table = document.querySelector("#leaderboard table");
  const heads = [...table.tHead.rows[0].cells];
  const column = (name) => heads.findIndex((head) => head.innerText.includes(name));
  const cells = (name) =>
    [...table.tBodies[0].rows].map((row) => row.cells[column(name)].innerText);
  const click = (name) => heads[column(name)].querySelector("button").click();
  const seen = { heads: heads.map((head) => head.innerText), rank: cells("#") };
  const sorted = () => heads.filter((head) => head.ariaSort);
  seen.sorted = sorted().map((head) => [head.innerText, head.ariaSort]);
  for (const name of ["patch", "pixel", "seconds", "backbone"]) {
    seen[name] = [];
    for (const _ of [1, 2]) {
      click(name);
      seen[name].push([heads[column(name)].ariaSort, cells(name)]);
    }
  }
  seen.sortedColumns = sorted().length;
  document.querySelectorAll("[data-gallery]")[1].click();
  document.querySelector("[data-step='1']").click();
  const large = document.querySelector("#viewer img");
  await large.decode();
  seen.viewer = [document.getElementById("viewer").open,
                 document.getElementById("viewer-name").innerText];
  document.querySelector("[data-close]").click();
  seen.closed = !document.getElementById("viewer").open;
  seen.images = [...document.images].map((image) => image.naturalWidth);
  seen.charts = [...document.querySelectorAll("svg")].map((svg) => {
    const box = svg.getBBox(), frame = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll(".mark")].map((mark) => mark.getBBox().width);
    return [Math.min(box.width, box.height, frame.width, frame.height), Math.min(...marks)];
  });
  seen.tables = [...document.querySelectorAll("table")].map((table) => table.rows.length);
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.width = innerWidth;
  const text = JSON.stringify(seen);
  if (parent !== window) parent.postMessage(text, "*");
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = text;
  document.body.append(out);
});
</script>
"""
FRAME = """<!doctype html><iframe src="probed.html" style="width:390px;height:800px;border:0">
</iframe><script>
addEventListener("message", (event) => {
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = event.data;
  document.body.append(out);
});
</script>"""


def browse(path: Path, profile: Path) -> tuple[dict[str, Any], list[str]]:
    """Results of the probe of a page, and the lines of the console."""
    if CHROMIUM is None:
        pytest.skip("needs the program chromium (Debian: apt-get install chromium)")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])) if found else {}, console


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep of 24 points and an unfinished one."""
    folder = tmp_path_factory.mktemp("runs")
    write_sweep(folder / "sweep")
    write_run(folder / "sweep" / "24", {"patch.size": 9})
    return page.write_report(read_runs([folder / "sweep"]), folder / "report")


@pytest.fixture(scope="module")
def seen(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The page in Chromium, after its leaderboard was sorted and a gallery opened."""
    folder = tmp_path_factory.mktemp("browser")
    probed = folder / "probed.html"
    probed.write_text(report.read_text().replace("</body>", f"{PROBE}</body>"))
    result, console = browse(probed, folder / "profile")
    assert console == []
    (folder / "phone.html").write_text(FRAME)
    result["phone"], console = browse(folder / "phone.html", folder / "profile")
    assert console == []
    return result


def test_console_errors_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<script>nowhere()</script>")
    _, console = browse(path, tmp_path / "profile")
    assert "nowhere is not defined" in "".join(console)


def test_leaderboard_starts_with_the_best(seen: dict[str, Any]) -> None:
    assert seen["rank"] == [*map(str, range(1, 25)), "–"]
    assert seen["sorted"] == [["image AUROC", "descending"]]


def test_leaderboard_sorts_on_a_click(seen: dict[str, Any]) -> None:
    sizes = ["1"] * 8 + ["3"] * 8 + ["5"] * 8 + ["9"]
    assert seen["patch"] == [["ascending", sizes], ["descending", sizes[::-1]]]
    names = ["resnet18"] * 13 + ["wide_resnet50_2"] * 12
    assert seen["backbone"] == [["ascending", names], ["descending", names[::-1]]]
    assert seen["sortedColumns"] == 1


def test_numbers_sort_as_numbers(seen: dict[str, Any]) -> None:
    (order, up), (_, down) = seen["seconds"]
    numbers = [float(text.replace(",", "")) for text in up[:-1]]
    assert order == "ascending"  # fewer is better
    assert numbers == sorted(numbers)
    assert numbers != sorted(numbers, key=str)
    assert down[:-1] == up[-2::-1]


def test_undefined_sorts_last_both_ways(seen: dict[str, Any]) -> None:
    for order, cells in seen["pixel"]:
        assert cells[-2:] == ["undefined"] * 2
        defined = [float(text) for text in cells[:-2]]
        assert defined == sorted(defined, reverse=order == "descending")
    assert seen["seconds"][1][1][-1] == "undefined"


def test_every_figure_is_drawn(seen: dict[str, Any]) -> None:
    charts_and_signs = seen["charts"]
    curves, shares, fronts, signs = 2 * 3, 1, 3, 8 + 6 + 3  # two numeric factors, three metrics
    assert len(charts_and_signs) == curves + shares + fronts + signs
    assert all(box > 0 and mark > 0 for box, mark in charts_and_signs)
    assert len(seen["images"]) == 24 + 1  # the thumbnails, and the one shown large
    assert all(width == 420 for width in seen["images"])
    assert all(rows > 1 for rows in seen["tables"])


def test_gallery_opens_steps_and_closes(seen: dict[str, Any]) -> None:
    assert seen["viewer"][0]
    assert seen["viewer"][1].startswith("#")
    assert seen["closed"]


def test_page_fits_a_phone(seen: dict[str, Any]) -> None:
    assert seen["phone"]["width"] == 390
    assert seen["phone"]["overflow"] <= 0
    assert seen["overflow"] <= 0
    assert seen["phone"]["charts"] != seen["charts"]
    assert all(box > 0 for box, _ in seen["phone"]["charts"])


def test_page_needs_nothing_else(report: Path) -> None:
    text = report.read_text()
    assert re.search(r"https?://", text) is None
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in text
    assert re.search(r"url\(|@import", text) is None


def test_tables_are_told_to_screen_readers(report: Path) -> None:
    text = report.read_text()
    heads = re.findall(r"<th [^>]*>", text)
    assert heads
    assert all('scope="col"' in head or 'scope="row"' in head for head in heads)
    assert "<img" in text
    assert all(" alt=" in image for image in re.findall(r"<img[^>]*>", text))
    drawn = re.findall(r"<svg[^>]*>", text)
    assert all("aria-label=" in svg or "aria-hidden" in svg for svg in drawn)
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert all(f'id="{anchor}"' in text for anchor in anchors)


def test_page_of_24_points_is_small(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", gallery=(640, 740))  # noise: nothing is harder to shrink
    path = page.write_report(read_runs([tmp_path / "sweep"]), tmp_path)
    text = path.read_text()
    assert path.stat().st_size < 8_000_000
    assert text.count("data:image/jpeg") == 24


def test_galleries_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for i in range(4):
        metrics = {"image_auroc": 0.9 - i / 100}
        write_run(tmp_path / str(i), {"patch.size": i}, metrics, gallery=(60, 70))
    table = read_runs([tmp_path])
    text = page.page(table, 2 * SMALLEST_GALLERY)
    assert text.count("data:image/jpeg") == 2
    assert "2 more would make the page too large" in text
    assert "more would make" not in page.page(table)
    assert '<section id="galleries"' not in page.page(table, 0)


def test_broken_gallery_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", {}, {"image_auroc": 0.9}, gallery=(60, 70))
    (folder / "figures" / "gallery.png").write_bytes(b"no picture")
    assert "data:image/jpeg" not in page.page(read_runs([tmp_path]))


def test_everything_is_escaped(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>\"'&"
    for i, category in enumerate((bad, "nut")):
        for ratio in (0.1, 0.2):
            undefined = {"aupro": bad}
            metrics = {"image_auroc": ratio, "aupro": None, "undefined": {**undefined, bad: bad}}
            settings = {
                "data.category": category,
                "backbone.name": f"{bad}{ratio}",
                "coreset.ratio": ratio,
                "coreset.pool": 1 / ratio,
                "paper": {bad: 1.0},
            }
            write_run(tmp_path / f"<b>{i}{ratio}", settings, metrics, gallery=(60, 70))
    write_run(tmp_path / "<b>begun", {"coreset.pool": 7, "seed": bad})
    text = page.page(read_runs([tmp_path]))
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert text.count("<script>") == text.count("</script>") == 1


def test_page_of_one_run(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {}, {"image_auroc": 0.9})
    text = page.page(read_runs([tmp_path]))
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["varied", "leaderboard", "runs"]


def test_page_of_categories_and_seeds(tmp_path: Path) -> None:
    for ratio in (0.01, 0.1):
        for name in ("bottle", "cable"):
            for seed in (0, 1, 2):
                metrics = {"image_auroc": 0.9 + seed / 100, "memory_bytes": 1e6}
                settings = {"coreset.ratio": ratio, "data.category": name, "seed": seed}
                failed = ratio == 0.1 and name == "cable" and seed == 2
                folder = tmp_path / f"{ratio}{name}{seed}"
                write_run(folder, settings, None if failed else metrics)
    text = page.page(read_runs([tmp_path]))
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["varied", "leaderboard", "categories", "repeats", "curves", "runs"]
    assert 'title="no finished run of cable at seed=2"' in text
    assert "0.9100 <small>± 0.0248</small>" in text  # t(0.975, 2) · 0.01 / sqrt(3)
    assert "0.8852 – 0.9348" in text
    assert 'class="interval"' in text


def test_many_lines_share_the_colours_of_one_factor(tmp_path: Path) -> None:
    for i in range(60):
        settings = {"patch.size": 1 + i % 3, "image.crop": i // 3 % 5, "coreset.ratio": i // 15}
        write_run(tmp_path / str(i), settings, {"image_auroc": i / 100})
    text = page.page(read_runs([tmp_path]))
    legends = re.findall(r'aria-label="Legend">(.*?)</ul>', text)
    assert [re.findall(r"</svg>(.*?)</li>", legend) for legend in legends] == [
        [f"crop={i}" for i in range(5)],
        [f"crop={i}" for i in range(5)],
        [f"ratio={i}" for i in range(4)],
    ]


def test_axes() -> None:
    powers = charts.axis("ratio", [0.001, 0.01, 0.1])
    assert powers.logarithmic
    assert powers.ticks == pytest.approx([0.001, 0.01, 0.1])
    assert powers.share(0.01) == pytest.approx(0.5)
    plain = charts.axis("size", [1, 3, 5, 9], at=[1, 3, 5, 9])
    assert not plain.logarithmic
    assert plain.share(5) == pytest.approx(0.5)
    fine = charts.axis("", [0.93, 0.97])
    assert [fine.show(tick) for tick in fine.ticks] == ["0.93", "0.94", "0.95", "0.96", "0.97"]
    alone = charts.axis("", [0.5])
    assert 0 < alone.share(0.5) < 1
    for low, high in ((0, 1e-9), (-5, 1e6), (3, 3), (0, 0), (1, 8)):
        assert len(charts.axis("", [low, high]).ticks) > 1


def test_labels_keep_apart() -> None:
    ticks = [1, 1.001, 1.002, 2]
    x, y = charts.axis("x", ticks, at=ticks), charts.axis("y", [0, 1])
    drawn = page.figure(charts.chart([Series("s", [Mark(1, 0, "a < b")])], x, y, 'of "x"'))
    assert drawn.count('text-anchor="middle"') == 2 + 1  # two ticks and the axis' name
    assert "<title>a &lt; b</title>" in drawn
    assert 'aria-label="of &#34;x&#34;"' in drawn


def test_command_writes_all_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "0", {}, {"image_auroc": 0.9})
    write_run(tmp_path / "runs" / "1", {"patch.size": 1})
    monkeypatch.setattr(sys, "argv", ["patchcore report", str(tmp_path / "runs")])
    command.main()
    names = sorted(path.name for path in (tmp_path / "runs" / "report").iterdir())
    assert names == ["report.csv", "report.html", "report.md", "runs.csv"]
    out = capsys.readouterr().out
    assert "not counted: 1: unfinished: no metrics.json" in out
    assert f"report: {tmp_path / 'runs' / 'report' / 'report.html'}" in out
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "runs"), "--out", str(elsewhere)])
    command.main()
    assert (elsewhere / "report.html").is_file()


def test_command_without_runs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["patchcore report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*holds no run"):
        command.main()
