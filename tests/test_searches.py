"""Multiruns that cannot end well, or would replace other files: refused before their points."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from patchcore.commands import Stopped
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.hydra_values import recorded
from patchcore.commands.searches import (
    check_multirun,
    check_studies,
    fill_directions,
    keep_last,
    told_again,
)
from patchcore.commands.sweep import MOST, Conclusion, concluded, record_failure, start_point
from patchcore.errors import InputError
from patchcore.runfolder import InUseError
from tests.run_folders import write_run
from tests.runs import patchcore

OPTUNA = ["hydra/sweeper=optuna", "patch.size=1,3"]
BOTH = "objectives=[image_auroc,memory_bytes]"


def composed(*overrides: str) -> Any:
    """Settings of a multirun, as Hydra composes them."""
    if "hydra/sweeper=optuna" in overrides:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        given = ["logger=none", *overrides]
        return loader.load_configuration(
            "config", given, RunMode.MULTIRUN, validate_sweep_overrides=False
        )


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        check_multirun(composed(*overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["hydra.sweeper.direction=[maximize,minimize]"],
            "hydra.sweeper.direction=[maximize,minimize] does not fit objectives=image_auroc: give "
            "one direction for each objective",
        ),
        (
            ["hydra.sweeper.direction=maximize", BOTH],
            "hydra.sweeper.direction=maximize does not fit objectives=[image_auroc,memory_bytes]: "
            "give one direction for each objective",
        ),
        (
            ["hydra.sweeper.direction=[maximize]", BOTH],
            "hydra.sweeper.direction=maximize does not fit objectives=[image_auroc,memory_bytes]: "
            "give one direction for each objective",
        ),
        (
            ["hydra.sweeper.direction=[up,down]", BOTH],
            "hydra.sweeper.direction must be minimize or maximize for each objective, got up",
        ),
    ],
)
def test_directions_fit_the_objectives(overrides: list[str], message: str) -> None:
    assert refusal(*OPTUNA, *overrides) == message


@pytest.mark.parametrize(
    ("overrides", "directions"),
    [
        ([], ["maximize"]),
        (["objectives=[image_auroc,aupro]"], ["maximize", "maximize"]),
        ([BOTH], ["maximize", "minimize"]),
        (["objectives=[memory_bytes]"], ["minimize"]),
        (["hparams_search=accuracy_seconds"], ["maximize", "minimize"]),
        (["hparams_search=accuracy_memory", "objectives=[aupro]"], ["maximize"]),
        (["hydra.sweeper.direction=minimize"], "minimize"),
    ],
)
def test_a_search_without_directions_looks_for_the_best(
    overrides: list[str], directions: str | list[str]
) -> None:
    config = composed(*OPTUNA, *overrides)
    fill_directions(config)
    assert config.hydra.sweeper.direction == directions
    check_multirun(config)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsgaii", "motpe"])
@pytest.mark.parametrize(("typed", "seed"), [("", 0), ("null", None), ("7", 7)])
def test_a_search_has_a_seed_unless_told_otherwise(
    sampler: str, typed: str, seed: int | None
) -> None:
    given = [f"hydra.sweeper.sampler.seed={typed}"] if typed else []
    config = composed(*OPTUNA, f"hydra/sweeper/sampler={sampler}", *given)
    assert config.hydra.sweeper.sampler.seed == seed
    if sampler == "tpe":
        assert composed(*OPTUNA, *given).hydra.sweeper.sampler == config.hydra.sweeper.sampler


@pytest.mark.parametrize(("written", "seed"), [("null", None), ("3", 3)])
def test_the_seed_of_a_settings_file_stays(tmp_path: Path, written: str, seed: int | None) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: optuna\n"
        f"hydra: {{sweeper: {{sampler: {{seed: {written}}}}}}}\n"
    )
    config = composed(f"hydra.searchpath=[file://{tmp_path}]", "preset=mine", OPTUNA[1])
    assert config.hydra.sweeper.sampler.seed == seed


def test_a_grid_takes_no_seed() -> None:
    config = composed(*OPTUNA, "hydra/sweeper/sampler=grid")
    assert "seed" not in config.hydra.sweeper.sampler


@pytest.mark.parametrize(
    ("overrides", "interrupted", "failed"),
    [
        (["patch.size=1,3"], "computes only the others", "computes only these"),
        (["patch.size=1,3", "resume=false"], *["computes every point, because of resume="] * 2),
        (OPTUNA, "computes only the others", "computes these; their results may let the search"),
        (
            [*OPTUNA, "hydra/sweeper/sampler=random"],
            *("computes only the others", "computes only these"),
        ),
        (
            [*OPTUNA, "hydra/sweeper/sampler=grid"],
            *("computes only the others", "computes only these"),
        ),
        (
            [*OPTUNA, "hydra.sweeper.sampler.seed=null"],
            *["draws other points, because the search has no seed: give it another"] * 2,
        ),
        (
            [*OPTUNA, "hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=a"],
            *["continues the study with other points: give it another hydra.sweep.dir to keep"] * 2,
        ),
        (
            [*OPTUNA, "hydra.sweeper.storage=sqlite:///s.db"],
            *("computes only the others", "computes these; their results may"),
        ),
    ],
)
def test_another_start_is_told_as_it_is(
    overrides: list[str], interrupted: str, failed: str
) -> None:
    config, again = composed(*overrides), "the same command, started again, "
    assert told_again(config).startswith(again + interrupted)
    assert told_again(config, failed=True).startswith(again + failed)


def test_failed_and_interrupted_searches_say_what_another_start_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(*OPTUNA, "hydra.sweeper.sampler.seed=null", f"hydra.sweep.dir={tmp_path}")
    told = "he same command, started again, draws other points, because the search has no seed: "
    with pytest.raises(SystemExit), concluded():
        Conclusion().on_multirun_start(config)
        (tmp_path / "0/.hydra").mkdir(parents=True)
        (tmp_path / "0/.hydra/overrides.yaml").write_text("- patch.size=1\n")
        record_failure(tmp_path / "0", InputError("no data"))
    assert f"T{told}" in capsys.readouterr().err
    with pytest.raises(Stopped, match=f"0 finished points are kept in .*; t{told}"), concluded():
        Conclusion().on_multirun_start(config)
        raise Stopped(2)


def test_a_search_has_something_to_search() -> None:
    told = "hydra/sweeper=optuna has nothing to search: give a setting several values, such as"
    assert refusal(OPTUNA[0], "patch.size=3").startswith(told)
    config = composed(OPTUNA[0], "patch.size=3")
    config.hydra.sweeper.params = {"coreset.ratio": "0.1,0.2"}  # as settings files give them
    check_multirun(config)


@pytest.mark.parametrize("first", [[], OPTUNA[:1]])
@pytest.mark.parametrize("added", ["={seed:'0,1'}", ".seed='0,1'"])
def test_values_to_try_can_be_added_where_there_are_none(first: list[str], added: str) -> None:
    for sign in ("+", "++"):
        config = composed(*first, f"{sign}hydra.sweeper.params{added}")
        assert config.hydra.sweeper.params == {"seed": "0,1"}
        check_multirun(config)


@pytest.mark.parametrize(
    "overrides",
    [
        OPTUNA,
        [*OPTUNA, BOTH, "hydra.sweeper.direction=[maximize,minimize]"],
        ["hydra/sweeper=optuna", "coreset.ratio=interval(0.1,0.5)"],
        ["patch.size=3"],
    ],
)
def test_usual_searches_pass(overrides: list[str]) -> None:
    check_multirun(composed(*overrides))


@pytest.mark.filterwarnings("ignore")  # of Optuna
def test_a_database_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(*OPTUNA, "hydra.sweeper.storage=nope://x")
    assert told == (
        "hydra.sweeper.storage=nope://x: cannot be opened (Can't load plugin: "
        "sqlalchemy.dialects:nope): correct it, or leave it out"
    )

    def outdated(storage: str) -> None:
        raise AssertionError

    monkeypatch.setattr("optuna.storages.get_storage", outdated)
    told = refusal(*OPTUNA, "hydra.sweeper.storage=sqlite:///s.db")
    assert told.startswith("hydra.sweeper.storage=sqlite:///s.db: this version of Optuna keeps")
    assert "pip install 'sqlalchemy<2' 'alembic<1.14'" in told


def test_slurm_is_needed_for_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr("shutil.which", lambda name: None)
    told = refusal("hydra/launcher=slurm", "patch.size=1,3")
    assert told.startswith("hydra/launcher=slurm needs SLURM, and this machine has no command srun")
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    check_multirun(composed("hydra/launcher=slurm", "patch.size=1,3"))


def test_a_missing_folder_of_all_points_is_told_once(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    given = ["data=mvtec", f"data.root={missing}", "patch.size=1,3"]
    told = f"data.root: there is no folder {missing}; the data are at https://www.mvtec.com"
    assert refusal(*given).startswith(told)
    assert refusal("data=mvtec", f"data.root={missing}", "seed=0,1").startswith(told)
    check_multirun(composed(*given[::2], f"data.root={missing},{tmp_path}"))
    check_multirun(composed(*given[:2], "data=mvtec,btad"))
    check_multirun(composed("patch.size=1,3"))  # generated images have no folder
    check_multirun(composed("patch.size=1,3", f"data.root={missing}"))  # or make it
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"):
        check_multirun(composed(*given, "hydra/launcher=submitted"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["experiment=example,mapping"], "experiment=example: has points of its own to try, which"),
        (["experiment=mtd,example", "seed=0"], "experiment=example: has points of its own"),
        (["hparams_search=accuracy_seconds,accuracy_memory", *OPTUNA], "hparams_search=accuracy_s"),
        (["experiment=mtd,mtd", "hydra.sweeper.max_batch_size=2"], ""),
        (["preset=patchcore_1,patchcore_10"], ""),
        (["experiment=example", "seed=0,1"], ""),
    ],
)
def test_several_studies_lose_no_points(given: list[str], told: str, tmp_path: Path) -> None:
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", given, RunMode.MULTIRUN)
        if not told:
            check_studies(config, loader)
            return
        with pytest.raises(InputError, match=f"^{told}"):
            check_studies(config, loader)


def test_ranges_count_in_the_numbers_that_are_typed() -> None:
    for typed, expected in (
        ("0.1,0.4,0.1", ["0.1", "0.2", "0.3"]),
        ("0.5,0,-0.2", ["0.5", "0.3", "0.1"]),
        ("1,2.5", ["1.0", "2.0"]),
        ("0,3", ["0", "1", "2"]),
    ):
        override = OverridesParser.create().parse_override(f"coreset.ratio=range({typed})")
        assert [*override.sweep_string_iterator()] == expected


def test_of_several_values_the_last_is_searched() -> None:
    config = composed(*OPTUNA, "coreset.ratio=0.1", "seed=0", "coreset.ratio=interval(0.2,0.4)")
    keep_last(config)
    found = list(config.hydra.overrides.task)
    assert found[-2:] == ["coreset.ratio=interval(0.2,0.4)", "seed=0"]


@pytest.mark.parametrize(
    "later",
    ["hydra.sweep.subdir=p${hydra.job.num}", "hydra.sweep.subdir=${hydra.job.override_dirname}"],
)
def test_values_that_refer_to_others_are_searched_as_typed(later: str) -> None:
    """The others may differ between points, or have no value yet."""
    typed = ["data=folder", "data.nominal=${data.root}/good", "seed=0", "seed=1"]
    config = composed(*OPTUNA, *typed, later)
    keep_last(config)
    with initialize_config_module("patchcore.conf", **VERSION_BASE):
        check_studies(config, GlobalHydra.instance().config_loader())
    check_multirun(config)
    assert typed[1] in recorded(config.hydra.overrides.task)
    assert recorded(config.hydra.overrides.hydra) == ["hydra/sweeper=optuna", later]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "hydra.output_subdir=null",
            "hydra.output_subdir: must be .hydra in a multirun, whose points are found by this "
            "folder, got null: leave it out",
        ),
        (
            "hydra.sweep.subdir=../p${hydra.job.num}",
            "hydra.sweep.subdir: m/../p0 is not in the multirun's folder m: give a path below it",
        ),
        (
            "hydra.sweep.subdir=/p/${hydra.job.num}",
            "hydra.sweep.subdir: /p/0 is not in the multirun's folder m: give a path below it",
        ),
    ],
)
def test_points_that_would_not_be_found_are_refused(override: str, message: str) -> None:
    """A multirun would not notice that they fail."""
    assert refusal("hydra.sweep.dir=m", override) == message


def test_points_check_that_they_are_in_the_folder_of_their_multirun(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^hydra\.sweep\.subdir: .*/m2 is not in the multirun's"):
        start_point(tmp_path / "m2", tmp_path / "m")


def test_points_of_another_multirun_in_the_folder_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("patch.size=1,3", f"hydra.sweep.dir={tmp_path}")

    def start(point: str) -> None:
        (tmp_path / f"{point}/.hydra").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{point}/.hydra/overrides.yaml").write_text("- seed=0\n")
        start_point(tmp_path / point, tmp_path)

    with pytest.raises(SystemExit), concluded():
        Conclusion().on_multirun_start(config)
        for name in ("theirs", "taken", "both"):  # the other multirun computes these
            with monkeypatch.context() as other:
                other.setenv("PATCHCORE_MULTIRUN", "other")
                start(name)
        for name in ("both", "ours", "taken"):
            start(name)
        record_failure(tmp_path / "both", InUseError("another process runs in it"), ["seed=7"])
        with monkeypatch.context() as other:
            other.setenv("PATCHCORE_MULTIRUN", "other")
            start("taken")  # which now computes it anew
            start("ours")
            record_failure(tmp_path / "ours", InUseError("another process runs in it"))
        with monkeypatch.context() as lost:  # a launcher that hands on no variables
            lost.delenv("PATCHCORE_MULTIRUN")
            start("nameless")
    told = capsys.readouterr().err
    assert "error: 3 of the points failed:" in told
    assert "theirs" not in told and "taken" not in told
    assert f"{tmp_path}/both: seed=7" in told  # not those of the other one's point there
    assert all(f"{tmp_path}/{name}: seed=0" in told for name in ("ours", "nameless"))


def test_points_that_failed_alike_are_listed_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("patch.size=1,3", f"hydra.sweep.dir={tmp_path}")
    with pytest.raises(SystemExit), concluded():
        Conclusion().on_multirun_start(config)
        for i in range(MOST + 3):
            folder = tmp_path / f"{i}/.hydra"
            folder.mkdir(parents=True)
            (folder / "overrides.yaml").write_text(f"- seed={i}\n")
            record_failure(folder.parent, InputError("odd" if i == 1 else "no data"))
    told = capsys.readouterr().err.splitlines()
    assert f"error: {MOST + 3} of the points failed:" in told
    assert told.count("    no data") == told.count("    odd") == 1
    assert told.count("  … and 2 more") == 1
    assert told[told.index("    odd") - 1] == f"  {tmp_path}/1: seed=1"


def test_finished_points_of_earlier_starts_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed("patch.size=1,3", f"hydra.sweep.dir={tmp_path}")

    def start(numbers: range) -> str:
        with concluded():
            Conclusion().on_multirun_start(config)
            for i in numbers:
                if not (tmp_path / str(i)).exists():
                    write_run(tmp_path / str(i), {"patch.size": 2 * i + 1}, {"image_auroc": 0.9})
                    (tmp_path / f"{i}/.hydra").mkdir()
                (tmp_path / f"{i}/.hydra/overrides.yaml").write_text(f"- patch.size={2 * i + 1}\n")
        return capsys.readouterr().out

    assert "other starts" not in start(range(3))
    os.utime(tmp_path / "2/.hydra/overrides.yaml", (1, 1))
    assert start(range(2)).splitlines()[-1] == (
        f"also counted, from other starts in this folder: {tmp_path / '2'}"
    )


@pytest.mark.parametrize("name", ["multirun.yaml", "optimization_results.yaml", "report/runs.csv"])
def test_a_multirun_replaces_no_file_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / "m/report").mkdir(parents=True)
    (tmp_path / "m" / name).write_text("mine")
    place = f"hydra.sweep.dir={tmp_path / 'm'}"
    ended = patchcore("train", "--multirun", "logger=none", place, "patch.size=1,3")
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        f"error: {tmp_path / 'm' / name}: would be replaced, but is not of a "
        f"{'report' if '/' in name else 'multirun'}: name another folder with hydra.sweep.dir, or "
        "move the file"
    )
    assert (tmp_path / "m" / name).read_text() == "mine"
    assert len([path for path in (tmp_path / "m").rglob("*") if path.is_file()]) == 1


def test_a_search_without_any_value_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(*OPTUNA, f"hydra.sweep.dir={tmp_path}")

    def search(**metrics: Any) -> None:
        with concluded():
            Conclusion().on_multirun_start(config)
            write_run(tmp_path / "0", {"objectives": ["aupro"]}, metrics)
            (tmp_path / "0/.hydra").mkdir()
            (tmp_path / "0/.hydra/overrides.yaml").write_text("- patch.size=1\n")

    with pytest.raises(InputError, match=r"^objectives: no trial finished with a value for every"):
        search(image_auroc=0.9, aupro=None, undefined={"aupro": "no masks"})
    assert "failed trials, aupro: no masks: points 0" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of Optuna
def test_a_study_with_other_directions_is_told(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    kept = {"study_name": "a", "storage": optuna.storages.InMemoryStorage()}
    optuna.create_study(**kept, directions=["minimize"])
    config = composed(*OPTUNA, f"hydra.sweep.dir={tmp_path / 'm'}")
    told = r"^hydra\.sweeper\.study_name: the study of this name looks in other directions: choose"
    with pytest.raises(InputError, match=told), concluded():
        Conclusion().on_multirun_start(config)
        optuna.create_study(**kept, directions=["maximize"], load_if_exists=True)
