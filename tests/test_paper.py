import csv
import math
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

import patchcore.paper
from patchcore.paper import DOUBTFUL, number, stated, table
from patchcore.report.reading import read_run
from patchcore.report.table import Table
from tests.run_folders import write_run
from tests.test_config import composed

NAMES = sorted(path.stem for path in Path(patchcore.paper.__file__).parent.glob("*.csv"))
CATEGORIES = [name for name in next(iter(table("table_s1").values())) if name != "average"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_whole_and_in_range(name: str) -> None:
    path = Path(patchcore.paper.__file__).with_name(f"{name}.csv")
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(table(name)) == len(rows) - 1  # no row twice
    for (metric, _), cells in table(name).items():
        values = [value for cell in cells.values() if (value := number(cell)) is not None]
        assert values
        if metric in ("image_auroc", "pixel_auroc", "aupro"):
            assert all(10 < value <= 100 for value in values)


def doubtful(key: tuple[str, str, str, str], difference: float, allowed: float) -> bool:
    """Whether a cell is named as one that cannot be right; asserts that it is if it must be."""
    assert (abs(difference) > allowed) == (key in DOUBTFUL), (key, difference)
    return key in DOUBTFUL


@pytest.mark.parametrize("name", ["table_s1", "table_s2", "table_s3", "table_s4"])
def test_averages_are_those_of_the_categories(name: str) -> None:
    checked = 0
    for (metric, method), cells in table(name).items():
        values = [number(cells[category]) for category in CATEGORIES]
        if None not in values:
            mean = math.fsum(value for value in values if value is not None) / len(values)
            whole = all("." not in cell or cell == "100" for cell in cells.values())
            step = 1.0 if whole else 0.1  # either side is rounded to it
            difference = mean - float(cells["average"])
            doubtful((name, metric, method, "average"), difference, step + 1e-9)
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("name", ["table_1", "table_2", "table_3", "table_4"])
def test_errors_are_what_the_scores_leave(name: str) -> None:
    rows = table(name)
    checked = 0
    for (metric, method), cells in rows.items():
        if metric.endswith(" error"):
            score = rows[metric.removesuffix(" error"), method]["average"]
            difference = 100 - float(score) - float(cells["average"])
            doubtful((name, metric, method, "average"), difference, 0.05)
            checked += 1
    assert checked >= 7


def test_tables_agree_with_each_other() -> None:
    for part, whole in (("table_1", "s1"), ("table_2", "s2"), ("table_3", "s3"), ("table_4", "s4")):
        for key, cells in table(part).items():
            if key in table(f"table_{whole}"):
                assert table(f"table_{whole}")[key]["average"] == cells["average"]
    for (metric, method), cells in table("table_5").items():
        for name in ("table_1", "table_2", "table_3"):  # those of SPADE and PaDiM are their papers'
            if method.startswith("patchcore") and (metric, method) in table(name):
                assert table(name)[metric, method]["average"] == cells["average"]
    for (metric, method), cells in table("table_s6").items():
        for name in ("table_1", "table_2", "table_3"):
            if (metric, method) in table(name):
                difference = float(cells["wide_resnet50_2"]) - float(
                    table(name)[metric, method]["average"]
                )
                doubtful(("table_s6", metric, method, "wide_resnet50_2"), difference, 0.05)


def test_a_category_has_its_own_value_and_an_average_says_that_it_is_one() -> None:
    tables = "table_s1 table_s2 table_s3"
    assert stated(tables, "patchcore_10", category="cable") == {
        "image_auroc": 0.994,
        "pixel_auroc": 0.985,
        "aupro": 0.926,
    }
    spade = stated(tables, "spade", category="cable")  # its image AUROC is printed on average alone
    assert spade == {"average_image_auroc": 0.855, "pixel_auroc": 0.972, "aupro": 0.909}
    assert stated("table_5", "padim")["average_milliseconds_per_image"] == 190
    assert stated("table_s5", "patchcore_25", "16")["average_image_auroc"] == 0.955
    assert stated("table_6", "patchcore_10", data="mtd") == {"image_auroc": 0.979}
    assert stated("table_6", "patchcore_10", data="mstc") == {"average_pixel_auroc": 0.918}


def test_what_the_paper_does_not_state_is_not_made_up() -> None:
    assert stated("table_s1", "patchcore_5", category="cable") == {}
    assert stated("table_s1", "patchcore_1", data="visa", category="capsules") == {}
    assert stated("table_s5", "patchcore_25", "3") == {}
    assert stated("table_s5", "patchcore_25", "16", data="mtd") == {}


def test_every_point_gets_the_values_of_its_own_method() -> None:
    def paper(*overrides: str) -> dict[str, float]:
        try:
            return composed("experiment=paper/table_1", *overrides).paper
        finally:
            HydraConfig.instance().cfg = None

    screw = "data.category=screw"
    assert paper(screw)["image_auroc"] == 0.964  # PatchCore-1%
    assert paper(screw, "coreset.ratio=0.1")["image_auroc"] == 0.97
    assert paper(screw, "coreset.ratio=0.05") == paper(screw, "coreset=random") == {}
    assert paper("data=mtd") == {}


def test_an_average_stands_beside_all_categories_only(tmp_path: Path) -> None:
    runs = []
    for category in CATEGORIES:
        settings = {"data.category": category, "paper": {"average_image_auroc": 0.99}}
        folder = write_run(tmp_path / category, settings, {"image_auroc": 0.98}, {"data": "mvtec"})
        runs.append(read_run(folder))
    whole = Table(runs)
    assert whole.paper_metrics == ["image_auroc"]
    assert whole.points[0].paper("image_auroc") == 0.99
    assert math.isnan(whole.points[0].paper("image_auroc", "cable"))
    assert math.isnan(Table(runs[:14]).points[0].paper("image_auroc"))
