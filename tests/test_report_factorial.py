"""Effects and interactions of settings that varied together."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from patchcore.report.blocks import PARTIAL, Forest, Note
from patchcore.report.factorial import MOST, factorial_blocks, reference, terms
from patchcore.report.page import page
from patchcore.report.points import Factor
from patchcore.report.table import Table, read_runs
from patchcore.report.text import markdown
from tests.run_folders import write_run

RADII, WHITENINGS, SHARES = (None, 2), (None, 0.99), (0.0, 0.01)
SEEDS, NAMES = (0, 1), ("bottle", "cable")


def auroc(radius: Any, whitening: Any, share: float, name: str, seed: int) -> float:
    """A radius helps by 2 points, by 1 alone once features are whitened; shares do nothing."""
    drawn = np.random.default_rng([bool(radius), bool(whitening), share > 0, seed, len(name)])
    effect = 0.02 * bool(radius) - 0.01 * (bool(radius) and bool(whitening))
    return 0.8 + effect + 0.03 * bool(whitening) + float(drawn.uniform(0, 0.002))


def write_grid(folder: Path, *left_out: tuple[Any, ...]) -> Table:
    for at in product(RADII, WHITENINGS, SHARES, NAMES, SEEDS):
        keys = ("method.radius", "method.whitening", "scoring.top_share", "data.category", "seed")
        metrics = None if at in left_out else {"image_auroc": auroc(*at)}
        write_run(folder / "-".join(map(str, at)), dict(zip(keys, at, strict=True)), metrics)
    return read_runs([folder])


def test_categories_that_some_points_lack_count_where_runs_have_them(tmp_path: Path) -> None:
    for radius, whitening, name in product(RADII, WHITENINGS, NAMES):
        if name == "bottle" or radius is None:
            settings = {"method.radius": radius, "method.whitening": whitening}
            value = 0.5 + 0.2 * bool(radius) + 0.1 * bool(radius and whitening)
            folder = tmp_path / f"{radius}-{whitening}-{name}"
            write_run(folder, settings | {"data.category": name}, {"image_auroc": value})
    table = read_runs([tmp_path])
    assert len(table.parts) == 2
    ((_, family),) = table.families
    found = {term.name: term for term in terms(family, "image_auroc")}
    told = {name: (term.difference.count, term.runs) for name, term in found.items()}
    both = "method.radius=2 × method.whitening=0.99"
    assert told == {"method.radius=2": (1, 2), "method.whitening=0.99": (2, 3), both: (1, 1)}
    assert found["method.radius=2"].difference.mean == pytest.approx(0.25)
    assert found[both].difference.mean == pytest.approx(0.1)
    assert markdown(table).count("## Effects and interactions, data 1 and 2") == 1


def test_terms_by_hand(tmp_path: Path) -> None:
    found = {term.name: term for term in terms(write_grid(tmp_path), "image_auroc")}
    assert [*found] == [
        "method.radius=2",
        "method.whitening=0.99",
        "scoring.top_share=0.01",
        "method.radius=2 × method.whitening=0.99",
        "method.radius=2 × scoring.top_share=0.01",
        "method.whitening=0.99 × scoring.top_share=0.01",
    ]
    units = [*product(NAMES, SEEDS)]
    main = [
        np.mean([auroc(2, w, s, *unit) - auroc(None, w, s, *unit)
                 for w, s in product(WHITENINGS, SHARES)])
        for unit in units
    ]  # fmt: skip
    both = [
        np.mean([auroc(2, 0.99, s, *unit) - auroc(None, 0.99, s, *unit)
                 - auroc(2, None, s, *unit) + auroc(None, None, s, *unit) for s in SHARES])
        for unit in units
    ]  # fmt: skip
    for name, expected, runs in (("", main, 16), (" × method.whitening=0.99", both, 8)):
        term = found[f"method.radius=2{name}"]
        interval = scipy.stats.ttest_1samp(expected, 0).confidence_interval()
        value = term.difference
        assert value.mean == pytest.approx(np.mean(expected))
        assert [value.mean - value.half, value.mean + value.half] == pytest.approx([*interval])
        assert (value.count, term.runs) == (4, runs)
    assert found["method.radius=2 × method.whitening=0.99"].difference.mean < -0.005


def test_runs_without_partners_are_left_out(tmp_path: Path) -> None:
    table = write_grid(tmp_path, (2, None, 0.0, "cable", 1))
    found = {term.name: term for term in terms(table, "image_auroc")}
    assert found["method.radius=2"].runs == 15
    assert found["method.radius=2 × method.whitening=0.99"].runs == 7
    assert found["scoring.top_share=0.01"].runs == 15


def test_means_over_incomplete_sets_of_runs_are_marked(tmp_path: Path) -> None:
    complete = write_grid(tmp_path / "complete")
    assert not any(term.partial for term in terms(complete, "image_auroc"))
    assert PARTIAL not in page(complete) and "\\*" not in markdown(complete)
    table = write_grid(tmp_path / "failed", (2, None, 0.0, "cable", 1))
    assert all(term.partial for term in terms(table, "image_auroc"))
    blocks = factorial_blocks(table)
    (forest,) = (block for block in blocks if isinstance(block, Forest))
    assert all(row.text.endswith("*") for row in forest.rows)
    assert Note(PARTIAL) in blocks
    text = markdown(table).partition("## Effects and interactions")[2].partition("\n## ")[0]
    assert len([line for line in text.splitlines() if line.startswith("| ") and "\\*" in line]) == 6


def test_terms_without_a_whole_point_are_marked(tmp_path: Path) -> None:
    out = [(2, 0.99, 0.0, name, seed) for name, seed in product(NAMES, SEEDS)]
    found = {term.name: term for term in terms(write_grid(tmp_path, *out), "image_auroc")}
    assert all(term.partial for term in found.values())
    assert found["method.radius=2"].runs == 12


def test_page_and_markdown_have_the_same_terms(tmp_path: Path) -> None:
    table = write_grid(tmp_path)
    html, text = page(table), markdown(table)
    assert html.count('r="4.5"') == 6 and '<svg class="forest"' in html
    found = terms(table, "image_auroc")
    sure = [x for x in found if abs(x.difference.mean) > x.difference.half]
    rising = sum(term.difference.mean > 0 for term in sure)
    assert html.count('<g class="good">') == rising > 0
    assert html.count('<g class="bad">') == len(sure) - rising > 0
    for term in found:
        assert f"<title>{term.name}: " in html
        assert f"| {term.name} |" in text
    assert "against method.radius=null, method.whitening=null, scoring.top_share=0" in text


def test_there_are_none_of_settings_that_never_crossed(tmp_path: Path) -> None:
    for number, (size, ratio) in enumerate(((1, 0.1), (3, 0.2), (5, 0.3))):
        settings = {"patch.size": size, "coreset.ratio": ratio}
        write_run(tmp_path / str(number), settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert factorial_blocks(table) == [] and "factorial" not in markdown(table)


def test_the_largest_of_many_are_shown(tmp_path: Path) -> None:
    for size, ratio in product((1, 3, 5, 7, 9, 11, 13), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)):
        settings = {"patch.size": size, "coreset.ratio": ratio}
        write_run(tmp_path / f"{size}-{ratio}", settings, {"image_auroc": 0.5 + size * ratio / 30})
    table = read_runs([tmp_path])
    found = terms(table, "image_auroc")
    assert len(found) == 6 + 7 + 42
    text = markdown(table)
    assert f"The {MOST} largest of 55 are shown." in text
    assert "there are no intervals" in text
    (forest,) = (block for block in factorial_blocks(table) if isinstance(block, Forest))
    assert len(forest.rows) == MOST
    left_out = sorted((abs(term.difference.mean) for term in found), reverse=True)[MOST:]
    assert min(abs(row.value) for row in forest.rows) >= max(left_out)


@pytest.mark.parametrize(
    ("values", "off"),
    [
        ([1, 3, None], None),
        ([False, True], False),
        ([0.0, 0.01], 0.0),
        (["concat", "separate"], "concat"),
    ],
)
def test_a_switch_is_compared_with_off(values: list[Any], off: Any) -> None:
    assert reference(Factor("key", values, [])) == off
