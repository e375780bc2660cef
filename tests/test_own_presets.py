"""Choices in a folder of one's own, which have to say of which kind they are."""

from pathlib import Path

import pytest

from patchcore.commands.overrides import as_typed
from tests.runs import patchcore


def told(folder: Path, group: str, content: str) -> str:
    """Last line of a run that chooses a file of this content in a group."""
    (folder / group).mkdir(exist_ok=True)
    (folder / group / "mine.yaml").write_text(content)
    own = ("--config-dir", str(folder), f"hydra.run.dir={folder / 'run'}")
    done = patchcore("train", *own, "logger=none", f"{group}=mine")
    assert done.code == 1
    return done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("group", "content", "begin", "kinds"),
    [
        ("data", "root: /a\nnominal: good\n", "data.root: ", "btad, folder, "),
        ("data", "nominal: good\n", "data.nominal: ", "folder (in data/mine.yaml)"),
        ("data", "", "data: ", "btad, folder, "),
        ("coreset", "ratio: 0.3\n", "coreset.ratio: ", "approximate, greedy, learned or random"),
        ("method", "radius: 1\n", "method.radius: ", "patchcore (in method/mine.yaml)"),
    ],
)
def test_a_file_without_its_kind_is_told_what_to_add(
    group: str, content: str, begin: str, kinds: str, tmp_path: Path
) -> None:
    assert told(tmp_path, group, content).startswith(
        f"error: {begin}the settings file does not say which {group} it is for: add the line "
        f"'defaults: [KIND]', where KIND is {kinds}"
    )


def test_a_file_that_repeats_its_group_is_told_to_leave_it_out(tmp_path: Path) -> None:
    assert told(tmp_path, "data", "defaults: [folder]\ndata:\n  root: /a\n") == (
        "error: data.data: its settings are those of data already: leave the line 'data:' out "
        "(in data/mine.yaml)"
    )


def test_a_file_with_its_kind_is_read(tmp_path: Path) -> None:
    line = told(tmp_path, "data", f"defaults: [folder]\nroot: {tmp_path}\nnominal: absent\n")
    assert line.startswith("error: data.nominal: there is no folder ")


def test_a_file_that_ends_in_yml_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yml").write_text("coreset: {ratio: 0.2}\n")
    run = f"hydra.run.dir={tmp_path}/run"
    done = patchcore("train", "--config-dir", str(tmp_path), "experiment=mine", run)
    assert done.code == 1 and done.err == (
        f"error: {tmp_path}/experiment/mine.yml: settings files end in .yaml: rename it\n"
    )


def test_a_file_with_the_name_of_a_built_in_choice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coreset").mkdir()
    (tmp_path / "coreset/greedy.yaml").write_text("ratio: 0.2\n")
    places = [f"hydra.{key}.dir={tmp_path}/run" for key in ("run", "sweep")]
    for own in ("coreset=greedy", "coreset=random,greedy"):
        flags = ["-m"] if "," in own else []
        done = patchcore("train", *flags, "--config-dir", str(tmp_path), own, *places)
        assert done.code == 1 and done.err == (
            "error: coreset/greedy.yaml: coreset=greedy is built in: give the file another name\n"
        )
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "file",
    [
        *("experiment/example", "experiment/paper/table_1", "preset/patchcore_1", "patch/average"),
        *("hparams_search/accuracy_memory", "backbone/embedded", "hydra/job_logging/default"),
    ],
)
def test_a_file_that_a_built_in_one_hides_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / f"{file}.yaml").write_text("# @package _global_\nseed: 1\n")
    group, _, name = file.rpartition("/") if "hydra" in file else file.partition("/")
    places = ("--config-dir", str(tmp_path)), (f"hydra.searchpath=[file://{tmp_path}]",)
    for place in places:
        done = patchcore("train", *place, f"{group}={name}", f"hydra.run.dir={tmp_path}/run")
        assert done.code == 1 and done.err == (
            f"error: {file}.yaml: {group}={name} is built in: give the file another name\n"
        )
        assert not (tmp_path / "run").exists()


def test_a_main_file_of_ones_own_goes_before_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset/rad.yaml").write_text("# @package _global_\nseed: -1\n")
    (tmp_path / "config.yaml").write_text(
        "hydra: {searchpath: ['pkg://patchcore.conf']}\ndefaults: [schema, {data: generated}, "
        "{coreset: greedy}, {index: torch}, {method: patchcore}, {image: null}, _self_, "
        "{preset: rad}]\nimage: {}\ntrainer: {}\nlogger: {}\n"
    )
    done = patchcore("train", f"--config-path={tmp_path}", f"hydra.run.dir={tmp_path}/run")
    assert done.err == "error: seed must be in [0, 2^32), got -1\n"


def test_choices_that_look_like_numbers_are_read_as_typed(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name in ("2024_11", "1e3", "true"):
        (tmp_path / f"experiment/{name}.yaml").write_text("# @package _global_\nseed: -1\n")
    places = ("--config-dir", str(tmp_path)), (f"hydra.searchpath=[file://{tmp_path}]",)
    for place in places:
        typed = as_typed([*place, "experiment=2024_11,1e3,nut,true,null"])
        assert typed[-1] == "experiment='2024_11','1e3',nut,'true',null"
        assert as_typed([*place, "experiment=7", "seed=2024_11"])[-2:] == [
            "experiment=7",
            "seed=2024_11",
        ]
    done = patchcore("train", *places[0], "experiment=2024_11", f"hydra.run.dir={tmp_path}/run")
    assert done.err == "error: seed must be in [0, 2^32), got -1\n"


def test_messages_list_choices_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset/7.yaml").write_text("# @package _global_\nseed: 1\n")
    for name in ("8", "mine"):
        done = patchcore("train", "--config-dir", str(tmp_path), f"preset={name}")
        assert done.err.startswith(f"error: preset={name}: there is no such choice; ")
        assert " 7, anomaly_dino, " in done.err
