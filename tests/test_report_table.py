import csv
import io
import json
import math
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from patchcore.errors import InputError
from patchcore.report.conclusion import conclude
from patchcore.report.effects import check_against, effects
from patchcore.report.points import Summary, summarise
from patchcore.report.sentences import best, sentence
from patchcore.report.table import Table, pareto, read_runs
from patchcore.report.text import markdown, points_csv, runs_csv, write_tables
from patchcore.report.words import distinct, natural, number, show
from tests.run_folders import SETTINGS, write_run


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def by_label(table: Table) -> dict[str, float]:
    return {point.label: point.value(table.metric).mean for point in table.points}


def of_seeds(*values: float) -> dict[tuple[str, str], float]:
    return {("", f"seed={seed}"): value for seed, value in enumerate(values)}


def test_summary_of_repeats_by_hand() -> None:
    found = summarise(of_seeds(1.0, 2.0, 3.0, 4.0))
    assert found.mean == 2.5
    assert found.count == 4
    assert found.deviation == pytest.approx(1.2909944487)  # sqrt(5 / 3)
    assert found.half == pytest.approx(3.1824463053 * 1.2909944487 / 2)  # t(0.975, 3), sqrt(4)


def test_two_repeats_have_the_wide_interval_of_one_degree_of_freedom() -> None:
    found = summarise(of_seeds(0.90, 0.92))
    assert found.deviation == pytest.approx(0.01 * math.sqrt(2))
    assert found.half == pytest.approx(12.7062047 * 0.01)  # s / sqrt(2) is 0.01


def test_one_repeat_has_no_spread_and_none_no_mean() -> None:
    assert summarise(of_seeds(0.5)).mean == 0.5
    assert math.isnan(summarise(of_seeds(0.5)).half)
    assert not summarise({}).defined
    assert summarise({}).reason == "no finished run"


def test_runs_that_share_a_seed_are_not_independent(tmp_path: Path) -> None:
    values = {(0, 0): 0.58, (0, 1): 0.67, (1, 0): 0.35, (1, 1): 0.40}  # (data.seed, coreset.seed)
    crossed = {("", f"data.seed={a}, coreset.seed={b}"): x for (a, b), x in values.items()}
    found = summarise(crossed)
    assert found.mean == pytest.approx(0.5)
    of_data = summarise(of_seeds(0.625, 0.375))  # the other seed has a narrower interval
    assert (found.count, found.half) == (2, pytest.approx(of_data.half))
    for (a, b), value in values.items():
        settings = {"data.seed": a, "coreset.seed": b}
        write_run(tmp_path / f"{a}{b}", settings, {"image_auroc": value})
    (point,) = read_runs([tmp_path]).points
    assert point.value("image_auroc") == found == point.cell("bottle", "image_auroc")
    together = {("", f"data.seed={i}, coreset.seed={i}"): x for i, x in enumerate(values.values())}
    assert summarise(together) == summarise(of_seeds(*values.values()))
    of_categories = {(name, f"seed={i}"): x for i, x in enumerate((0.5, 0.6)) for name in "ab"}
    assert summarise(of_categories).count == 4


def test_settings_of_a_group_that_change_together_are_named_by_its_choice(tmp_path: Path) -> None:
    for name, reweight, share in (("reweighted", 9, 0.0), ("top_share", 0, 0.01)):
        folder = tmp_path / name
        settings = {"scoring.reweight": reweight, "scoring.top_share": share}
        write_run(folder, settings, {"image_auroc": 0.9}, {"scoring": name})
    table = read_runs([tmp_path])
    assert [factor.key for factor in table.factors] == ["scoring"]
    assert {point.label for point in table.points} == {"scoring=reweighted", "scoring=top_share"}


def test_class_average_is_over_categories_then_over_seeds(tmp_path: Path) -> None:
    scores = {("bottle", 0): 0.90, ("cable", 0): 0.80, ("bottle", 1): 0.96, ("cable", 1): 0.82}
    for (category, seed), score in scores.items():
        settings = {"data.category": category, "seed": seed, "coreset.seed": seed}
        write_run(tmp_path / f"{category}{seed}", settings, {"image_auroc": score})
    table = read_runs([tmp_path])
    (point,) = table.points
    value = point.value("image_auroc")
    assert (value.mean, value.count) == (pytest.approx((0.85 + 0.89) / 2), 2)
    assert value.deviation == pytest.approx(0.04 / math.sqrt(2))
    assert point.cell("bottle", "image_auroc").mean == pytest.approx(0.93)
    assert point.cell("cable", "image_auroc").mean == pytest.approx(0.81)
    assert table.category_sets == [["bottle", "cable"]]
    assert table.seed_keys == {"seed": ["coreset.seed"]}
    assert table.factors == [] and table.repeated


def write_memories(folder: Path, values: dict[tuple[str, ...], float]) -> Path:
    """Runs of two patch sizes for each set of categories in one memory; size 3 gains 0.01."""
    for names, value in values.items():
        category = names[0] if len(names) == 1 else [*names]
        for size in (1, 3):
            settings = {"data.category": category, "patch.size": size}
            metrics = {"image_auroc": value + 0.01 * (size == 3)}
            write_run(folder / f"{'-'.join(names)}={size}", settings, metrics)
    return folder


def test_several_categories_in_one_memory_are_averaged_with_no_others(tmp_path: Path) -> None:
    values = {("a",): 0.9, ("b",): 0.8, ("a", "b"): 0.5, ("b", "c"): 0.6}
    table = read_runs([write_memories(tmp_path, values)])
    found = {part.data: [p.value("image_auroc").mean for p in part.points] for part in table.parts}
    assert found == {
        "categories=a, b": pytest.approx([0.86, 0.85]),
        "categories=b, c in one memory": pytest.approx([0.61, 0.6]),
        "categories=a, b in one memory": pytest.approx([0.51, 0.5]),
    }
    assert [part.category_sets for part in table.parts] == [[], [["a", "b"]], []]
    assert {len(point.seeds) for part in table.parts for point in part.points} == {1}
    table.against = ("patch.size", "1")
    check_against(table, *table.against)
    every = [effects(family, *table.against, ["image_auroc"]) for _, family in table.families]
    assert [(e.pairs, e.missing) for (e,) in every] == [(1, 0), (2, 0), (1, 0)]
    told = sentence(table)
    assert told.startswith("6 points from 8 finished runs; patch.size and the category varied. 3 s")
    text = markdown(table)
    assert "averaged over; a list is one memory, ranked alone" in text
    assert text.count("| a | b | average |") == 1
    lines = conclude(tmp_path)
    assert "data 1: categories=a, b in one memory" in lines
    assert lines[lines.index("best by image AUROC of data 1, 2 of 2:") + 1] == (
        "  1  0.5100  patch.size=3"
    )


def test_a_list_of_one_category_is_that_category(tmp_path: Path) -> None:
    for size, category in ((1, "a"), (3, ["a"])):
        settings = {"data.category": category, "patch.size": size}
        write_run(tmp_path / str(size), settings, {"image_auroc": 0.9})
    assert len(read_runs([tmp_path]).parts) == 1


def test_memories_that_differ_in_a_late_category_are_told_apart(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(10)]
    table = read_runs([write_memories(tmp_path, {tuple(names[:9]): 0.5, (*names[:8], "z"): 0.6})])
    assert [part.data for part in table.parts] == [
        f"categories={', '.join(names[:8])}, {last} in one memory" for last in ("c8", "z")
    ]
    table = read_runs([write_memories(tmp_path / "else", {tuple(names[:9]): 0.5, ("q", "r"): 0.6})])
    first = f"categories={', '.join(names[:6])} and 3 more in one memory"
    assert [part.data for part in table.parts] == [first, "categories=q, r in one memory"]


def test_draws_of_shots_are_repeats_too(tmp_path: Path) -> None:
    for i in range(4):
        settings = {"seed": i % 2, "data.shots_seed": i // 2, "data.shots": 5}
        write_run(tmp_path / str(i), settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert len(table.points) == 1 and table.factors == []


def test_failed_category_leaves_its_average_undefined_and_others_alone(tmp_path: Path) -> None:
    for size in (1, 3):
        for category in ("bottle", "cable", "screw"):
            metrics = {"image_auroc": 0.9 + size / 100}
            failed = size == 3 and category == "cable"
            write_run(
                tmp_path / f"{size}{category}",
                {"patch.size": size, "data.category": category},
                None if failed else metrics,
            )
    table = read_runs([tmp_path])
    one, three = table.points  # the undefined one last, although its categories are better
    assert one.value("image_auroc").mean == pytest.approx(0.91)
    assert three.value("image_auroc") == Summary(
        three.value("image_auroc").mean, reason="no finished run of cable"
    )
    assert not three.value("image_auroc").defined
    assert three.cell("bottle", "image_auroc").mean == pytest.approx(0.93)
    assert "no finished run of cable" in markdown(table)


def test_category_that_failed_everywhere_is_still_expected(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"data.category": "bottle"}, {"image_auroc": 0.9})
    write_run(tmp_path / "b", {"data.category": "cable"})
    (point,) = read_runs([tmp_path]).points
    assert not point.value("image_auroc").defined


def test_each_data_set_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Tables with a value come first, and points are numbered over all tables."""
    write_run(tmp_path / "0", {"data.split": "known"}, {"pixel_auroc": 0.5})
    assert read_runs([tmp_path], "pixel_auroc").parts[0].place == 0
    for i, (split, size) in enumerate((("new", 1), ("new", 3), ("other", 3)), 1):
        settings = {"data.split": split, "patch.size": size}
        write_run(tmp_path / str(i), settings, {"image_auroc": 0.5 + i / 10})
    table = read_runs([tmp_path], "image_auroc")
    parts = table.parts
    assert [part.data for part in parts] == [
        "data.split=new",
        "data.split=other",
        "data.split=known",
    ]
    assert [(part.number, part.place, part.first) for part in parts] == [
        *((1, 0, 0), (2, 1, 2), (3, 2, 3))
    ]
    assert [list(part.ids.values()) for part in parts] == [[0, 1], [2], [3]]
    (alone,) = parts[0].parts
    assert alone is parts[0]


def labels(folder: Path) -> list[list[str]]:
    return [[point.label for point in part.points] for part in read_runs([folder]).parts]


def test_points_on_different_data_show_what_else_differs(tmp_path: Path) -> None:
    for name, ratio in (("bottle", 0.1), ("cable", 0.5)):
        settings = {"data.category": name, "coreset.ratio": ratio}
        write_run(tmp_path / name, settings, {"image_auroc": 0.9})
    assert labels(tmp_path) == [["coreset.ratio=0.1"], ["coreset.ratio=0.5"]]
    table = read_runs([tmp_path])
    assert [row["coreset.ratio"] for row in rows_of(points_csv(table))] == ["0.1", "0.5"]
    boards = [line for line in markdown(table).splitlines() if line.startswith("| 1 |")]
    assert boards == ["| 1 | 0.1 | 0.9000 |", "| 1 | 0.5 | 0.9000 |"]


def test_a_sweep_without_the_run_of_one_category_shows_what_differs(tmp_path: Path) -> None:
    for name, ratio in (("bottle", 0.1), ("bottle", 0.5), ("cable", 0.5)):
        settings = {"data.category": name, "coreset.ratio": ratio}
        write_run(tmp_path / f"{name}{ratio}", settings, {"image_auroc": 0.9})
    assert labels(tmp_path) == [["coreset.ratio=0.1"], ["coreset.ratio=0.5"]]


def test_a_choice_that_differs_between_data_is_shown_beside_the_factors(tmp_path: Path) -> None:
    for name, chosen, ratio in (("a", "greedy", 0.1), ("a", "greedy", 0.5), ("b", "random", 0.5)):
        settings = {"data.root": f"data/{name}", "coreset.ratio": ratio}
        choices = {"data": name, "coreset": chosen}
        settings["coreset.start"] = chosen
        write_run(tmp_path / f"{name}{ratio}", settings, {"image_auroc": ratio}, choices)
    assert labels(tmp_path) == [
        ["coreset=greedy, coreset.ratio=0.5", "coreset=greedy, coreset.ratio=0.1"],
        ["coreset=random, coreset.ratio=0.5"],
    ]


def test_a_complete_sweep_on_several_data_sets_shows_its_factors_alone(tmp_path: Path) -> None:
    for split in ("new", "other"):
        for size in (1, 3):
            settings = {"data.split": split, "patch.size": size}
            write_run(tmp_path / f"{split}{size}", settings, {"image_auroc": 1 - size / 10})
    assert labels(tmp_path) == [["patch.size=1", "patch.size=3"]] * 2
    parts = read_runs([tmp_path]).parts
    assert all(part.fixed == () and part.shown == part.factors for part in parts)


def test_other_data_sets_categories_are_not_expected(tmp_path: Path) -> None:
    for name in ("bottle", "cable"):
        write_run(tmp_path / name, {"data.category": name}, {"image_auroc": 0.9})
    mtd = {"data.category": None, "data.root": "data/mtd"}
    write_run(tmp_path / "mtd", mtd, {"image_auroc": 0.97})
    table = read_runs([tmp_path])
    assert by_label(table) == {"data.root=data/mtd": 0.97, "data.root=data/mvtec": 0.9}


def test_missing_repeat_lowers_the_count_and_marks_the_mean(tmp_path: Path) -> None:
    for seed, score in enumerate((0.90, 0.92, None)):
        metrics = None if score is None else {"image_auroc": score}
        write_run(tmp_path / str(seed), {"seed": seed}, metrics)
    table = read_runs([tmp_path])
    (point,) = table.points
    assert (point.value("image_auroc").mean, point.value("image_auroc").count) == (0.91, 2)
    assert point.value("image_auroc").partial and point.cell("bottle", "image_auroc").partial
    text = markdown(table).partition("## Leaderboard")[2].partition("##")[0]
    assert "| 0.9100 ± 0.1271\\* |" in text and "\\* Runs are missing" in text
    repeats = markdown(table).partition("## Repeats")[2].partition("##")[0]
    assert "| 0.9100 \\* |" in repeats and "\\* Runs are missing" in repeats
    head, line = best(table)
    assert "0.9100 ± 0.1271*" in line
    assert "over seeds; *: some runs are missing or did not finish):" in head
    assert [table.name(run) for run in table.unfinished] == ["2"]
    assert (
        sentence(table)
        == "1 point from 2 finished runs and 1 that is not counted; the seed varied."
    )


def test_undefined_metric_keeps_its_reason(tmp_path: Path) -> None:
    undefined = {"pixel_auroc": "no test image has a mask"}
    metrics = {"image_auroc": 0.9, "pixel_auroc": None, "undefined": undefined}
    write_run(tmp_path / "0", {}, metrics)
    write_run(tmp_path / "1", {"patch.size": 5}, {"image_auroc": 0.8, "pixel_auroc": 0.7})
    table = read_runs([tmp_path])
    value = table.points[0].value("pixel_auroc")
    assert not value.defined
    assert value.reason == "no test image has a mask"
    assert rows_of(points_csv(table))[0]["pixel_auroc"] == ""
    assert rows_of(points_csv(table))[1]["pixel_auroc"] == "0.7"


def test_metric_without_any_value_is_told_and_has_no_column(tmp_path: Path) -> None:
    metrics = {"image_auroc": 0.9, "aupro": None, "undefined": {"aupro": "no masks"}}
    write_run(tmp_path / "0", {}, metrics)
    table = read_runs([tmp_path])
    assert table.metrics == ["image_auroc"]
    assert table.without_column == {"aupro": {"no masks": 1}}
    assert "AUPRO in every run: no masks" in markdown(table)


def test_settings_that_change_together_are_one_factor(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet50"):
        for size in (1, 3):
            settings = {
                "backbone.name": name,
                "backbone.weights": f"weights/{name}.safetensors",
                "patch.size": size,
            }
            write_run(tmp_path / f"{name}{size}", settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert [(factor.key, factor.follows) for factor in table.factors] == [
        ("backbone.name", ["backbone.weights"]),
        ("patch.size", []),
    ]
    assert table.factors[1].numbers == [1, 3]
    assert table.factors[0].numbers == []
    assert table.constant["coreset.ratio"] == 0.01
    assert "patch.size" not in table.constant
    assert list(table.varied) == ["backbone.name", "backbone.weights", "patch.size"]


def test_a_setting_that_another_only_determines_is_a_factor_of_its_own(tmp_path: Path) -> None:
    for i, (size, stride) in enumerate(((1, 1), (3, 2), (5, 2))):
        settings = {"patch.size": size, "patch.stride": stride}
        write_run(tmp_path / str(i), settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert [(factor.key, factor.follows) for factor in table.factors] == [
        ("patch.size", []),
        ("patch.stride", []),
    ]


def test_a_single_run_has_no_repeats_no_categories_and_the_columns_that_tell(
    tmp_path: Path,
) -> None:
    counts = {"images_without_mask": 0, "images_outside_crop": 3}  # 0 tells nothing of these
    write_run(tmp_path / "0", {}, {"image_auroc": 0.0, "memory_patches": 0, **counts})
    table = read_runs([tmp_path])
    assert not table.repeated and table.category_sets == []
    assert table.metrics == ["image_auroc", "memory_patches", "images_outside_crop"]


@pytest.mark.parametrize("traced", [1, 2])
def test_folders_that_do_not_tell_what_had_an_effect_are_as_those_that_do(
    tmp_path: Path, traced: int
) -> None:
    for seed in range(traced):
        folder = write_run(tmp_path / str(seed), {"seed": seed}, {"image_auroc": 0.9})
        settings = {**SETTINGS, "seed": seed, "patch": {"size": 3}}  # the stride had none
        provenance = {"settings": settings, "device": "cpu", "versions": {"torch": "2.7"}}
        (folder / "provenance.json").write_text(json.dumps(provenance))
    write_run(tmp_path / "old", {"seed": 7, "patch.stride": 2}, {"image_auroc": 0.8})
    table = read_runs([tmp_path])
    assert set(table.varied) == {"seed"} and table.factors == []
    assert (table.constant["device"], table.constant["versions.torch"]) == ("cpu", "2.7")


def test_path_leads_a_factor_only_alone(tmp_path: Path) -> None:
    for i, place in enumerate(("a/b", "a/c")):
        write_run(tmp_path / str(i), {"backbone.weights": place}, {"image_auroc": 0.9})
    assert [f.key for f in read_runs([tmp_path]).factors] == ["backbone.weights"]


def test_choice_of_a_group_names_what_it_settles(tmp_path: Path) -> None:
    for i, (chosen, extra) in enumerate(
        [
            ("greedy", {"projection": "GAUSSIAN", "anchors": None}),
            ("approximate", {"projection": "GAUSSIAN", "anchors": 10}),
            ("random", {}),
        ]
    ):
        for ratio in (0.01, 0.1):
            settings = {f"coreset.{key}": value for key, value in extra.items()}
            write_run(
                tmp_path / f"{i}{ratio}",
                {**settings, "coreset.ratio": ratio},
                {"image_auroc": 0.9},
                {"coreset": chosen, "logger": f"l{i}", "hydra/launcher": f"h{i}"},
            )
    factors = read_runs([tmp_path]).factors
    assert [factor.key for factor in factors] == ["coreset", "coreset.ratio"]
    assert factors[0].values == ["approximate", "greedy", "random"]
    assert sorted(factors[0].follows) == ["coreset.anchors", "coreset.projection"]


def test_number_goes_before_the_choice_that_says_the_same(tmp_path: Path) -> None:
    for size in (1, 3, 5):
        metrics = {"image_auroc": 0.9}
        write_run(tmp_path / str(size), {"patch.size": size}, metrics, {"patch": f"p{size}"})
    (factor,) = read_runs([tmp_path]).factors
    assert (factor.key, factor.numbers) == ("patch.size", [1, 3, 5])


def test_two_names_for_the_same_settings_are_no_difference(tmp_path: Path) -> None:
    for i, (chosen, seed) in enumerate((("p3", 0), ("p5", 1))):
        write_run(tmp_path / str(i), {"seed": seed}, {"image_auroc": 0.9}, {"patch": chosen})
    assert read_runs([tmp_path]).factors == []


def test_loggers_caches_and_paper_are_no_settings(tmp_path: Path) -> None:
    for i in range(2):
        settings = {
            "logger": {"csv": {"save_dir": str(i)}},
            "cache": {"enabled": i == 1},
            "paper": {"image_auroc": 0.9 + i / 50},
        }
        write_run(tmp_path / str(i), settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert table.varied == {}
    assert len(table.points) == 1


def test_of_equal_runs_the_newest_counts(tmp_path: Path) -> None:
    for i, score in enumerate((0.7, 0.8, 0.9)):
        folder = write_run(tmp_path / str(i), {}, {"image_auroc": score})
        os.utime(folder / "metrics.json", (1000 * (i % 2), 1000 * (i % 2)))
    write_run(tmp_path / "begun")
    table = read_runs([tmp_path])
    assert by_label(table) == {"all": 0.8}
    assert [table.status(run) for run in table.runs] == [
        "repeated; counted instead: 1",
        "finished",
        "repeated; counted instead: 1",
        "unfinished: no metrics.json; counted instead: 1",
    ]


def test_unfinished_broken_and_foreign_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {}, {"image_auroc": 0.9})
    write_run(tmp_path / "1", {"patch.size": 9})
    write_run(tmp_path / "2", {"patch.size": 7})
    (tmp_path / "2" / "metrics.json").write_text('{"image_auroc": 0.')
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "metrics.json").write_text("{}")
    died = tmp_path / "4" / ".hydra"  # before the run wrote its own settings
    died.mkdir(parents=True)
    OmegaConf.save(
        OmegaConf.create({**SETTINGS, "seed": 5, "coreset": {"seed": "${seed}"}, "logger": "${x}"}),
        died / "config.yaml",
    )
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "config.yaml").write_text("a: [")
    for inside in ("0/model", "1/checkpoint", "wandb/run-1/files"):
        (tmp_path / inside).mkdir(parents=True)
        (tmp_path / inside / "config.yaml").write_text("a: 1")
    table = read_runs([tmp_path])
    status = {table.name(run): table.status(run) for run in table.runs}
    assert list(status) == ["0", "1", "2", "3", "4", "5"]
    assert status["0"] == "finished"
    assert status["1"] == status["4"] == "unfinished: no metrics.json"
    assert status["2"].startswith("damaged: metrics.json: ")
    assert status["3"] == "damaged: metrics.json: it holds no metric"
    assert status["5"].startswith("unreadable settings")
    assert table.runs[4].settings["coreset.seed"] == 5
    assert [run.folder.name for run in table.unfinished] == ["1", "2", "3", "4", "5"]
    text = markdown(table)
    assert all(f"`{name}`: " in text for name in "12345")
    assert all(row["status"] == status[row["folder"]] for row in rows_of(runs_csv(table)))


def test_several_folders_that_overlap_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "0", {}, {"image_auroc": 0.9})
    write_run(tmp_path / "alone", {"patch.size": 1}, {"image_auroc": 0.8})
    linked = tmp_path / "by hand"
    linked.mkdir()
    (linked / "best").symlink_to(tmp_path / "sweep" / "0")
    (linked / "round").symlink_to(linked)
    table = read_runs([tmp_path / "sweep", tmp_path / "sweep" / "0", linked, tmp_path / "alone"])
    assert [table.name(run) for run in table.runs] == ["alone", "sweep/0"]


def test_runs_sort_as_people_count(tmp_path: Path) -> None:
    for i in (10, 9, 2):
        write_run(tmp_path / str(i), {"patch.size": i}, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert [run.folder.name for run in table.runs] == ["2", "9", "10"]
    assert [point.settings["patch.size"] for point in table.points] == [2, 9, 10]  # a tie


def test_folders_that_hold_nothing_to_report(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty: holds no run"):
        read_runs([empty])
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        read_runs([tmp_path / "nowhere"])
    write_run(tmp_path / "begun" / "0")
    with pytest.raises(InputError, match="begun: its only run is not finished"):
        read_runs([tmp_path / "begun"])
    write_run(tmp_path / "done", {}, {"image_auroc": 0.9})
    with pytest.raises(InputError, match="metric: no run has 'auroc'; choose one of image_auroc"):
        read_runs([tmp_path / "done"], "auroc")
    with pytest.raises(InputError, match="empty: holds no run"):
        read_runs([tmp_path / "done", empty])


@pytest.mark.parametrize("metric", ["decision_threshold", "test_images"])
def test_metrics_without_a_better_value_do_not_rank(metric: str, tmp_path: Path) -> None:
    write_run(tmp_path / "0", {}, {"image_auroc": 0.9, metric: 3})
    told = f"metric: no value of '{metric}' is better than another; choose one of image_auroc$"
    with pytest.raises(InputError, match=told):
        read_runs([tmp_path], metric)


def test_ranking_knows_what_should_be_small(tmp_path: Path) -> None:
    for i, (score, errors) in enumerate(((0.9, 7), (0.8, 3), (None, None))):
        metrics = {"image_auroc": score, "errors_at_full_recall": errors}
        write_run(tmp_path / str(i), {"patch.size": i + 1}, metrics)
    best = {"image_auroc": [1, 2, 3], "errors_at_full_recall": [2, 1, 3]}
    for metric, sizes in best.items():
        points = read_runs([tmp_path], metric).points
        assert [point.settings["patch.size"] for point in points] == sizes


def test_front_by_hand(tmp_path: Path) -> None:
    assert pareto([(1, 5), (2, 4), (2, 6), (3, 4), (0, 9), (1, 5)]) == [0, 1, 4, 5]
    for size, score, seconds in (
        (1, 0.90, 10.0),
        (3, 0.95, 20.0),
        (5, 0.94, 30.0),
        (7, 0.96, 40.0),
    ):
        metrics = {
            "image_auroc": score,
            "seconds": {"extract": seconds / 2, "score": seconds / 2},
        }
        write_run(tmp_path / str(size), {"patch.size": size}, metrics)
    front = read_runs([tmp_path]).front("seconds")
    assert [point.settings["patch.size"] for point in front] == [1, 3, 7]


def test_derived_times(tmp_path: Path) -> None:
    seconds = {"extract": 4.0, "score": 6.0}
    metrics = {"image_auroc": 0.9, "seconds": seconds, "test_images": 30}
    write_run(tmp_path / "0", {}, metrics)
    run = read_runs([tmp_path]).runs[0]
    assert run.metrics["seconds"] == 10.0
    assert run.metrics["milliseconds_per_image"] == pytest.approx(200.0)


def test_papers_value_beside_ours(tmp_path: Path) -> None:
    for category, ours, paper in (("bottle", 0.98, 1.0), ("cable", 0.94, 0.98)):
        settings = {"data.category": category, "paper": {"image_auroc": paper}}
        write_run(tmp_path / category, settings, {"image_auroc": ours})
    table = read_runs([tmp_path])
    (point,) = table.points
    assert point.paper("image_auroc") == pytest.approx(0.99)
    assert point.paper("image_auroc", "cable") == 0.98
    assert math.isnan(point.paper("aupro"))
    assert "| image AUROC | 0.9600 | 0.9900 | -0.0300 |" in markdown(table)
    assert rows_of(points_csv(table))[0]["paper_image_auroc"] == "0.99"


@pytest.mark.parametrize("count", [14, 15])
def test_the_papers_mean_over_all_categories_is_its_own_or_ours(tmp_path: Path, count: int) -> None:
    """Some tables print an average, which counts for all 15 categories alone."""
    for i in range(count):
        stated = {"image_auroc": 0.5 + i / 100, "aupro": 0.7, "average_aupro": 0.8}
        settings = {"data.category": f"c{i}", "paper": stated}
        metrics = {"image_auroc": 0.9, "aupro": 0.9}
        write_run(tmp_path / str(i), settings, metrics, {"data": "mvtec"})
    (point,) = read_runs([tmp_path]).points
    assert point.paper("image_auroc") == pytest.approx(0.5 + (count - 1) / 200)
    assert point.paper("aupro") == (0.8 if count == 15 else pytest.approx(0.7))


def test_curve_of_ratios_is_the_mean_over_runs(tmp_path: Path) -> None:
    for seed, gain in ((0, 0.0), (1, 0.02)):
        curve = [{"ratio": r, "memory_patches": 9, "image_auroc": r + gain} for r in (0.5, 0.25)]
        write_run(tmp_path / str(seed), {"seed": seed}, {"image_auroc": 0.9, "ratio_curve": curve})
    (point,) = read_runs([tmp_path]).points
    assert point.curve("image_auroc") == [(0.25, pytest.approx(0.26)), (0.5, pytest.approx(0.51))]
    assert point.curve("aupro") == []
    write_run(tmp_path / "2", {"seed": 2}, {"image_auroc": 0.9})  # has no curve
    (point,) = read_runs([tmp_path]).points
    assert point.curve("image_auroc") == []


def test_tables_hold_the_numbers(tmp_path: Path) -> None:
    for size, score in ((1, 0.8), (3, 0.912345678901)):
        for seed in (0, 1):
            metrics = {"image_auroc": score + seed / 100, "memory_bytes": 2_500_000}
            settings = {"patch.size": size, "seed": seed}
            write_run(tmp_path / f"{size}{seed}", settings, metrics)
    table = read_runs([tmp_path])
    best, worst = rows_of(points_csv(table))
    assert (best["rank"], best["patch.size"], best["finished"]) == ("1", "3", "2")
    assert float(best["image_auroc"]) == pytest.approx(0.917345678901, abs=1e-15)
    assert float(worst["image_auroc_sd"]) == pytest.approx(0.01 / math.sqrt(2))
    assert float(worst["image_auroc_ci95"]) == pytest.approx(12.7062047 * 0.005)
    assert len(rows_of(runs_csv(table))) == 4
    assert "| 1 | 3 | 0.9173 ± 0.0635 | 2.50 ± 0 |" in markdown(table)
    write_tables(table, tmp_path)
    assert (tmp_path / "report.csv").read_text() == points_csv(table)
    assert (tmp_path / "runs.csv").read_text() == runs_csv(table)
    assert (tmp_path / "report.md").read_text() == markdown(table)


def test_markdown_cells_stay_cells(tmp_path: Path) -> None:
    for i, name in enumerate(("a|b", "<i>\nc")):
        write_run(tmp_path / str(i), {"backbone.name": name}, {"image_auroc": 0.9})
    text = markdown(read_runs([tmp_path]))
    assert "a\\|b" in text
    assert "| &lt;i&gt;\\\\nc |" in text


def test_same_folders_make_the_same_tables(tmp_path: Path) -> None:
    for order, root in (((0, 1, 2), tmp_path / "one"), ((2, 0, 1), tmp_path / "two")):
        for i in order:
            write_run(root / str(i), {"patch.size": 2 * i + 1}, {"image_auroc": 0.9 + i % 2 / 10})
    one, two = (read_runs([tmp_path / name]) for name in ("one", "two"))
    assert markdown(one) == markdown(two)
    assert points_csv(one) == points_csv(two)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01, "0.01"),
        (1e-05, "1e-05"),
        (3, "3"),
        (None, "–"),
        (True, "true"),
        (["2", "3"], "[2,3]"),
    ],
)
def test_settings_are_shown_as_overrides(value: object, text: str) -> None:
    assert show(value) == text


def test_equal_values_are_one_and_sorted_for_people() -> None:
    assert distinct(["px10", None, 2, "px9", 2.0, 0.5]) == [0.5, 2.0, "px9", "px10", None]
    assert sorted(["a10", "a9", "10", "9"], key=natural) == ["9", "10", "a9", "a10"]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("image_auroc", 0.97, "0.9700"),
        ("memory_bytes", 24_469_504, "24.5"),
        ("memory_patches", 5974, "5,974"),
        ("seconds", 0.01234, "0.0123"),
        ("seconds", 1234.5, "1,234"),
        ("image_false_positives", 2.5, "2.50"),
        ("image_f1", math.nan, "undefined"),
    ],
)
def test_numbers_for_people(metric: str, value: float, text: str) -> None:
    assert number(metric, value) == text


def test_settings_that_a_run_died_without_are_no_difference(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, {"image.stretch": True}, {"image_auroc": 0.9})
    write_run(tmp_path / "died", {"image.stretch": "???"})
    table = read_runs([tmp_path])
    assert "image.stretch" not in table.varied and len(table.points) == 1


def test_a_run_that_rounds_nothing_is_told_so(tmp_path: Path) -> None:
    """Runs record the precision of the cache only where it changes their results."""
    for place, more in enumerate(({"cache.precision": "bfloat16"}, {})):
        settings = {"seed": 0, "patch.size": 3, **more}
        write_run(tmp_path / str(place), {}, {"image_auroc": 0.9 - place / 10})
        told = {"settings": settings, "choices": {}}
        (tmp_path / f"{place}/provenance.json").write_text(json.dumps(told))
    table = read_runs([tmp_path])
    labels = [point.label for point in table.points]
    assert labels == ["cache.precision=bfloat16", "cache.precision=float32"]
    check_against(table, "cache.precision", "float32")
