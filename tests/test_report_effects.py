"""Effects of a setting in pairs of runs, and the report at the end of a multirun."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from patchcore.commands import report as command
from patchcore.errors import InputError
from patchcore.report import words
from patchcore.report.conclusion import conclude
from patchcore.report.effects import check_against, effects, parse_against
from patchcore.report.page import page
from patchcore.report.table import Table, read_runs
from patchcore.report.text import markdown
from patchcore.tracking.multirun import overview
from tests.run_folders import write_run
from tests.runs import patchcore

SIZES, RATIOS, NAMES, SEEDS = (1, 3, 5), (0.01, 0.1), ("bottle", "cable"), (0, 1, 2)


def auroc(size: int, ratio: float, name: str, seed: int) -> float:
    """A value in which every setting counts, and size more at the larger ratio."""
    chance = np.random.default_rng([size, round(1000 * ratio), NAMES.index(name), seed])
    return 0.8 + 0.01 * size * (1 + ratio) + 0.03 * seed + chance.uniform(0, 0.01)


def write_grid(folder: Path, *left_out: tuple[int, float, str, int]) -> Table:
    for size, ratio, name, seed in product(SIZES, RATIOS, NAMES, SEEDS):
        settings = {
            "patch.size": size,
            "coreset.ratio": ratio,
            "data.category": name,
            "seed": seed,
        }
        at = (size, ratio, name, seed)
        metrics: dict[str, Any] = {"image_auroc": auroc(*at), "memory_bytes": 1e6 * ratio * size}
        place = folder / "-".join(map(str, at))
        write_run(place, settings, None if at in left_out else metrics)
    return read_runs([folder])


def test_effects_by_hand(tmp_path: Path) -> None:
    table = write_grid(tmp_path)
    found = effects(table, "patch.size", "3", ["image_auroc"])
    assert [(effect.value, effect.others) for effect in found] == [
        *[("1", ""), ("5", "")],
        *[(size, f"coreset.ratio={ratio}") for size in "15" for ratio in (0.01, 0.1)],
    ]
    for effect in found:
        ratios = [r for r in RATIOS if effect.others in ("", f"coreset.ratio={r}")]
        size = int(effect.value)
        differences = [
            np.mean([auroc(size, r, name, seed) - auroc(3, r, name, seed) for r in ratios])
            for name, seed in product(NAMES, SEEDS)
        ]
        test = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
        value = effect.difference
        assert value.mean == pytest.approx(np.mean(differences))
        assert [value.mean - value.half, value.mean + value.half] == pytest.approx([*test])
        assert (value.count, effect.pairs) == (6, 6 * len(ratios))
        assert (effect.missing, effect.partial) == (0, False)


def test_a_seed_that_only_some_values_have_is_the_seed_that_it_follows(tmp_path: Path) -> None:
    for size, seed in product((1, 3), (0, 1)):
        own = {"coreset.seed": seed if size == 3 else None}
        settings = {"patch.size": size, "seed": seed, "data.category": "nut", **own}
        write_run(tmp_path / f"{size}-{seed}", settings, {"image_auroc": 0.1 * size + 0.2 * seed})
    table = read_runs([tmp_path])
    assert table.seed_keys == {"seed": ["coreset.seed"]}
    (effect,) = effects(table, "patch.size", "3", ["image_auroc"])
    assert (effect.pairs, effect.missing) == (2, 0)
    assert effect.difference.mean == pytest.approx(-0.2)


def test_a_seed_that_all_runs_have_comes_before_one_that_some_lack(tmp_path: Path) -> None:
    quality = {}
    for shots, name, seed in product((5, None), ("random", "all"), (0, 1, 2)):
        quality[shots, name, seed] = float(np.random.default_rng([shots or 0, seed]).random())
        settings: dict[str, Any] = {"data.shots": shots, "coreset.name": name, "seed": seed}
        settings["data.shots_seed"] = seed if shots else None
        settings["coreset.seed"] = seed if name == "random" else None
        own = quality[shots, name, seed] + 0.1 * (name == "all")
        write_run(tmp_path / f"{shots}-{name}-{seed}", settings, {"image_auroc": own})
    table = read_runs([tmp_path])
    assert table.seed_keys == {"seed": ["data.shots_seed", "coreset.seed"]}
    assert [table.status(run) for run in table.runs] == ["finished"] * 12
    assert {point.value("image_auroc").count for point in table.points} == {3}
    found = effects(table, "coreset.name", "random", ["image_auroc"])
    assert [effect.pairs for effect in found] == [6, 3, 3]  # the main one, then for each `shots`
    for effect in found:
        assert effect.missing == 0 and effect.difference.mean == pytest.approx(0.1)


@pytest.mark.parametrize("draw", range(20))
def test_runs_with_other_seeds_are_never_one(draw: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(draw)
    keys = ("seed", "coreset.seed", "data.shots_seed")
    found = [tuple(int(value) for value in rng.integers(0, 3, 3)) for _ in range(5)]
    for number, values in enumerate(found):
        settings = {k: v - 1 if v else None for k, v in zip(keys, values, strict=True)}
        write_run(tmp_path / str(number), settings, {"image_auroc": 0.5})
    table = read_runs([tmp_path])
    kept = [run for run in table.runs if table.status(run) == "finished"]
    assert len(kept) == len(set(found))


def test_a_run_without_a_seed_is_the_partner_of_each(tmp_path: Path) -> None:
    for size, seed in ((1, None), (3, 0), (3, 1)):
        settings = {"patch.size": size, "data.category": "nut", "coreset.seed": seed}
        write_run(tmp_path / f"{size}-{seed}", settings, {"image_auroc": 0.5 + 0.1 * (seed or 0)})
    table = read_runs([tmp_path])
    for reference, difference in (("3", -0.05), ("1", 0.05)):
        (effect,) = effects(table, "patch.size", reference, ["image_auroc"])
        assert (effect.pairs, effect.missing) == (2, 0)
        assert effect.difference.mean == pytest.approx(difference)


def test_a_seed_of_one_value_is_no_repeat(tmp_path: Path) -> None:
    for size in (1, 3):
        own = {"coreset.seed": 0 if size == 3 else None}
        settings = {"patch.size": size, "seed": 0, "data.category": "nut", **own}
        write_run(tmp_path / str(size), settings, {"image_auroc": 0.1 * size})
    table = read_runs([tmp_path])
    assert table.seed_keys == {} and [factor.key for factor in table.factors] == ["patch.size"]
    (effect,) = effects(table, "patch.size", "3", ["image_auroc"])
    assert (effect.pairs, effect.missing) == (1, 0)


def test_missing_partners_are_left_out_and_told(tmp_path: Path) -> None:
    table = write_grid(tmp_path, (3, 0.01, "cable", 1), (5, 0.1, "bottle", 0))
    one, five = effects(table, "patch.size", "3", ["image_auroc"])[:2]
    assert (one.pairs, one.missing, one.partial) == (11, 1, True)
    assert (five.pairs, five.missing, five.partial) == (10, 2, True)
    expected = [auroc(1, 0.1, "cable", 1) - auroc(3, 0.1, "cable", 1)]
    for name, seed in product(NAMES, SEEDS):
        if (name, seed) != ("cable", 1):
            each = [auroc(1, r, name, seed) - auroc(3, r, name, seed) for r in RATIOS]
            expected.append(np.mean(each))
    assert one.difference.mean == pytest.approx(np.mean(expected))
    table.against = ("patch.size", "3")
    text = markdown(table)
    assert "values are left out" in text
    assert "so this mean leaves out some settings, categories or seeds" in text
    marked = [effect for effect in effects(table, "patch.size", "3", ["image_auroc"])[2:]
              if effect.partial]  # fmt: skip
    assert [(effect.value, effect.others) for effect in marked] == [
        ("1", "coreset.ratio=0.01"),
        ("5", "coreset.ratio=0.01"),
        ("5", "coreset.ratio=0.1"),
    ]


def test_an_effect_without_a_whole_point_is_marked(tmp_path: Path) -> None:
    for size, ratio, seed in product((1, 3, 5), RATIOS, SEEDS):
        if (size, ratio) != (5, 0.1):
            settings = {"patch.size": size, "coreset.ratio": ratio, "seed": seed}
            write_run(tmp_path / f"{size}-{ratio}-{seed}", settings, {"image_auroc": 0.1 * size})
    one, five, *single = effects(read_runs([tmp_path]), "patch.size", "3", ["image_auroc"])
    assert (one.partial, five.partial, five.pairs, five.missing) == (False, True, 3, 0)
    assert not any(effect.partial for effect in single)


def test_runs_that_never_pair_have_an_undefined_effect(tmp_path: Path) -> None:
    for size, ratio in ((1, 0.1), (3, 0.01), (3, 0.02)):
        settings = {"patch.size": size, "coreset.ratio": ratio}
        write_run(tmp_path / f"{size}{ratio}", settings, {"image_auroc": 0.9})
    (effect,) = effects(read_runs([tmp_path]), "patch.size", "3", ["image_auroc"])
    assert not effect.difference.defined
    assert (effect.pairs, effect.missing) == (0, 1)


def test_one_observation_has_no_interval(tmp_path: Path) -> None:
    for size in (1, 3):
        write_run(tmp_path / str(size), {"patch.size": size}, {"image_auroc": 0.9 + size / 100})
    table = read_runs([tmp_path])
    table.against = ("patch.size", "1")
    assert "| 3 | image AUROC | +0.0200 | 1 | 1 |" in markdown(table)
    assert '<section id="effects"' in page(table)
    assert "+0.0200" in page(table)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("coreset.ratio", r"--against: 'coreset\.ratio' is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("seed=0", r"that differ only in seed are one point: choose one of patch\.size, "),
        (
            "data.category=bottle",
            "runs of different categories are never paired: choose one of patch",
        ),
        ("image.size=7", r"image\.size tells no points apart: choose one of patch\.size, co"),
        ("patch.size=7", r"no run has patch\.size=7: choose one of 1, 3, 5"),
    ],
)
def test_references_that_no_runs_have_are_refused(text: str, told: str, tmp_path: Path) -> None:
    table = write_grid(tmp_path)
    with pytest.raises(InputError, match=told):
        check_against(table, *parse_against(text))
    for text in ("coreset.ratio=1e-2", "coreset.ratio=0.010", "coreset.ratio = '0.01'"):
        check_against(table, *parse_against(text))


def test_a_reference_on_other_data_is_told_so(tmp_path: Path) -> None:
    for size, root in ((1, "a"), (3, "b")):
        settings = {"patch.size": size, "data.root": root}
        write_run(tmp_path / str(size), settings, {"image_auroc": 0.9})
    table = read_runs([tmp_path])
    assert len(table.parts) == 2
    told = (
        r"^--against: no runs on the same data differ in patch\.size; there are 2 sets of data, "
        r"each compared alone: compare runs on the same data$"
    )
    with pytest.raises(InputError, match=told):
        check_against(table, "patch.size", "1")


def write_uneven(folder: Path, sets: dict[int, tuple[str, ...]], root: str = "a") -> Table:
    """A run for each category of each size, which gains 0.1 of the size, and 0.2 as a bottle."""
    for size, names in sets.items():
        for name in names:
            settings = {"patch.size": size, "data.category": name, "data.root": root}
            value = 0.1 * size + 0.2 * (name == "bottle")
            write_run(folder / f"{root}{size}{name}", settings, {"image_auroc": value})
    return read_runs([folder])


@pytest.mark.parametrize(("reference", "difference"), [("1", 0.2), ("3", -0.2)])
def test_points_with_other_categories_are_paired_where_they_share_some(
    reference: str, difference: float, tmp_path: Path
) -> None:
    table = write_uneven(tmp_path, {1: ("bottle", "cable"), 3: ("cable",)})
    assert len(table.parts) == 2  # as ranked
    table.against = ("patch.size", reference)
    check_against(table, *table.against)
    (([one, two], family),) = table.families
    assert [one.number, two.number] == [1, 2]
    (effect,) = effects(family, *table.against, ["image_auroc"])
    assert effect.difference.mean == pytest.approx(difference)
    assert (effect.difference.count, effect.pairs, effect.missing) == (1, 1, 1)
    text = markdown(table)
    assert "## Effects, data 1 and 2" in text and "1 value is left out: its run" in text
    assert "Only runs of the same category are paired." in text
    assert f"| {difference:+.4f} \\* | 1 | 1 |" in text and f"{difference:+.4f}" in page(table)
    assert page(table).count('<section id="effects') == 1


def test_points_are_paired_by_way_of_others(tmp_path: Path) -> None:
    sets = {1: ("bottle",), 3: ("bottle", "cable"), 5: ("cable",), 7: ("nut",)}
    table = write_uneven(tmp_path, sets)
    assert [len(parts) for parts, _ in table.families] == [3, 1]
    one, five = effects(table.families[0][1], "patch.size", "3", ["image_auroc"])
    assert [one.difference.mean, five.difference.mean] == pytest.approx([-0.2, 0.2])
    assert [(x.pairs, x.missing) for x in (one, five)] == [(1, 1)] * 2


def test_points_without_a_common_category_are_on_other_data(tmp_path: Path) -> None:
    table = write_uneven(tmp_path, {1: ("bottle",), 3: ("cable",)})
    with pytest.raises(InputError, match=r"no runs on the same data differ in patch\.size; .* 2 s"):
        check_against(table, "patch.size", "1")
    write_uneven(tmp_path, {1: ("bottle", "cable")}, "b")
    table = write_uneven(tmp_path, {3: ("bottle",)}, "b")
    assert sorted(len(parts) for parts, _ in table.families) == [1, 1, 2]
    table.against = ("patch.size", "1")
    check_against(table, *table.against)
    assert markdown(table).count("## Effects, data") == 1


def test_effects_are_told_of_tables_whose_parts_were_read_before(tmp_path: Path) -> None:
    for root in "ab":
        write_uneven(tmp_path, {1: ("bottle",), 3: ("bottle",)}, root)
    table = read_runs([tmp_path])
    assert len(table.parts) == 2
    table.against = ("patch.size", "1")
    assert [f"## Effects, data {n}\n" in markdown(table) for n in (1, 2)] == [True, True]


def test_equal_means_rank_and_read_equally(tmp_path: Path) -> None:
    """Sums of metrics differ in their last bit."""
    for size, values in ((1, (0.6625, 0.8)), (3, (0.6625000000000001, 0.8))):
        for seed, value in enumerate(values):
            settings = {"patch.size": size, "seed": seed}
            write_run(tmp_path / f"{size}{seed}", settings, {"image_auroc": value})
    table = read_runs([tmp_path])
    assert [point.settings["patch.size"] for point in table.points] == [1, 3]
    assert {words.number("image_auroc", p.value("image_auroc").mean) for p in table.points} == {
        "0.7312"
    }


def test_a_reference_may_be_written_as_in_an_override(tmp_path: Path) -> None:
    for i, (names, name) in enumerate(((["2"], "x y"), (["2", "3"], "z"))):
        settings = {"layers.names": names, "method.norm": not i, "trainer.name": name}
        write_run(tmp_path / str(i), settings, {"image_auroc": 0.9 - i / 10})
        write_run(tmp_path / f"{i}b", settings | {"method.norm": bool(i)}, {"image_auroc": 0.5})
    table = read_runs([tmp_path])
    for text in ("layers.names=['2', \"3\"]", "layers.names=[2, 3]", "method.norm=True"):
        check_against(table, *parse_against(text))
        assert effects(table, *parse_against(text), ["image_auroc"])
    told = r"trainer\.name always changes with layers\.names: give layers\.names in its place, "
    with pytest.raises(InputError, match=told + r"with one of \[2,3\], \[2\]$"):
        check_against(table, *parse_against("trainer.name=z"))


@pytest.mark.parametrize("value", ["null", "None", "–"])
def test_a_reference_may_be_a_setting_that_is_not_given(value: str, tmp_path: Path) -> None:
    for i, count in enumerate((None, 50)):
        write_run(tmp_path / str(i), {"coreset.count": count}, {"image_auroc": 0.9 - i / 10})
    table = read_runs([tmp_path])
    key, reference = parse_against(f"coreset.count={value}")
    check_against(table, key, reference)
    (effect,) = effects(table, key, reference, ["image_auroc"])
    assert (effect.value, effect.difference.mean) == ("50", pytest.approx(-0.1))
    assert [point.label for point in table.points] == ["coreset.count=null", "coreset.count=50"]
    with pytest.raises(InputError, match="choose one of 50, null"):
        check_against(table, key, "7")


def test_command_tells_effects_and_the_best_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(tmp_path / "runs")
    arguments = ["patchcore report", str(tmp_path / "runs"), "--against", "patch.size=3"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    lines = capsys.readouterr().out.splitlines()
    head = "best by image AUROC, 5 of 6 (±: half of Student's 95 % interval over seeds):"
    first = lines[lines.index(head) + 1]
    assert first.startswith("  1  0.8") and first.endswith("patch.size=5, coreset.ratio=0.1")
    assert "## Effects" in (tmp_path / "runs/report/report.md").read_text()
    arguments[-1] = "patch=3"  # stands for patch.size=3, as for patchcore train
    command.main()
    arguments += ["--against", "coreset.ratio=0.1"]
    with pytest.raises(SystemExit, match="error: --against: was given twice: give one KEY=VALUE"):
        command.main()


@pytest.mark.parametrize(
    ("objectives", "first", "told"),
    [
        ([["label_free"]] * 2, 5, "; ranked by AUROC of synthetic defects, the objective of these"),
        ([["memory_patches", "image_auroc"]] * 2, 5, "; ranked by memory patches, the first obj"),
        ([["image_auroc", "seconds"]] * 2, 3, " varied."),
        ([None, ["image_auroc"]], 3, " varied."),  # an earlier version stated none
        (
            [["memory_patches"], ["label_free"]],
            3,
            "; ranked by image AUROC, because the runs state different objectives (patchcore ",
        ),
    ],
)
def test_a_report_ranks_by_what_its_runs_state(
    objectives: list[list[str] | None], first: int, told: str, tmp_path: Path
) -> None:
    for (size, patches, quality), stated in zip(
        ((3, 200, 0.9), (5, 100, 0.8)), objectives, strict=True
    ):
        record = {"image_auroc": quality, "memory_patches": patches, "label_free": 1 - quality}
        settings: dict[str, Any] = {"patch.size": size}
        settings |= {} if stated is None else {"objectives": stated}
        write_run(tmp_path / "runs" / str(size), settings, record)
    done = patchcore("report", str(tmp_path / "runs"))
    head, _, best = done.out.splitlines()[:3]
    assert told in head and best.endswith(f"patch.size={first}")
    assert conclude(tmp_path / "runs")[0] == head  # as a multirun tells
    assert overview(tmp_path / "runs").best == f"patch.size={first}"
    for name in ("report.md", "report.html"):
        assert told.strip("; .") in (tmp_path / "runs/report" / name).read_text()
    asked = patchcore("report", str(tmp_path / "runs"), "--metric", "image_auroc").out.splitlines()
    assert "ranked" not in asked[0] and asked[2].endswith("patch.size=3")


def test_a_multirun_is_concluded_with_its_report(tmp_path: Path) -> None:
    write_grid(tmp_path)
    lines = conclude(tmp_path)
    assert lines[0].startswith("6 points from 36 finished runs")
    assert lines[1].startswith("best by image AUROC, 5 of 6 (±: ")
    assert lines[-1] == f"report: {tmp_path / 'report' / 'report.html'}"
    assert (tmp_path / "report/report.html").is_file()


@pytest.mark.parametrize(
    ("objective", "first", "told"),
    [
        ("label_free", "patch.size=5", "best by AUROC of synthetic defects, 2 of 2:"),
        ("memory_patches", "patch.size=5", "best by memory patches, 2 of 2:"),
        ("aupro", "patch.size=3", "ranked by image AUROC, not by the objective AUPRO: no point"),
        ("score_seconds", "patch.size=3", "not by the objective seconds of scoring: reports"),
    ],
)
def test_a_multirun_is_ranked_by_its_first_objective(
    objective: str, first: str, told: str, tmp_path: Path
) -> None:
    for size, patches, quality in ((3, 200, 0.9), (5, 100, 0.8)):
        record = {"image_auroc": quality, "memory_patches": patches, "label_free": 1 - quality}
        record |= {"aupro": None, "undefined": {"aupro": "no test image has a mask"}}
        settings = {"patch.size": size, "objectives": [objective, "image_auroc"]}
        write_run(tmp_path / str(size), settings, record)
    lines = conclude(tmp_path)
    assert any(told in line for line in lines), lines
    assert next(line for line in lines if line.startswith("  1")).endswith(first)
    view = overview(tmp_path)
    assert view.best == first
    assert view.numbers["best.image_auroc"] == (0.8 if first == "patch.size=5" else 0.9)


def test_a_multirun_without_results_is_concluded_in_a_line(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    (line,) = conclude(tmp_path)
    assert line.startswith("no report: ") and "its only run is not finished" in line
    assert not (tmp_path / "report").exists()
    write_run(tmp_path / "1", {}, {"image_auroc": 0.9})
    (tmp_path / "report").write_text("")
    (line,) = conclude(tmp_path)
    assert line.startswith("no report: ")


def test_what_has_no_rank_is_told(tmp_path: Path) -> None:
    why = {"aupimo": None, "undefined": {"aupimo": "too few nominal images"}}
    for i, root in enumerate(("a", "b")):
        write_run(tmp_path / str(i), {"data.root": root}, {"image_auroc": 0.9 - i / 10, **why})
    told = patchcore("report", str(tmp_path), "--metric", "aupimo").out.splitlines()
    assert [line for line in told if line.startswith("no rank")] == [
        "no rank by AUPIMO of data 1: too few nominal images",
        "no rank by AUPIMO of data 2: too few nominal images",
    ]
    write_run(tmp_path / "2", {"data.root": "c"}, {"image_ap": 0.5})
    told = patchcore("report", str(tmp_path)).out.splitlines()
    assert "best by image AUROC of data 1, 1 of 1:" in told
    assert "no rank by image AUROC of data 3: not in metrics.json" in told
    assert [line for line in told if line.startswith("data ")] == [
        f"data {number}: data.root={root}" for number, root in enumerate("abc", 1)
    ]
    assert conclude(tmp_path)[:-1] == told[:-1]  # as a multirun tells
