"""Settings files from elsewhere: the calls that they may have `patchcore train` make."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

from patchcore.commands import resolvers, targets
from patchcore.commands.generations import VERSION_BASE
from patchcore.commands.mistakes import explain
from patchcore.commands.targets import SECRET, _unsaid, build, check_targets, guard
from patchcore.errors import InputError
from tests.runs import patchcore

CSV = "pytorch_lightning.loggers.CSVLogger"


def test_files_may_use_every_resolver_of_our_own_presets() -> None:
    with mock.patch.object(resolvers, "resolver") as registered:
        resolvers.register_resolvers()
    own = {call.args[0] for call in registered.call_args_list}
    assert own <= targets.RESOLVERS and len(own) == 8


@pytest.fixture(autouse=True)
def command_line() -> Iterator[None]:
    """Nothing is typed unless the test says so; Hydra's sources are put back."""
    Plugins.instance()  # registers the sources
    types = SourcesRegistry.instance().types
    before = dict(types)
    with mock.patch.dict(os.environ), mock.patch.object(targets, "_typed", []):
        guard([])
        yield
    types.clear()
    types.update(before)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "pytorch_lightning.loggers.logger.os.system",
        "pytorch_lightning.loggers.CSVLogger.save",
        "pytorch_lightning.loggers.csv_logs.os",
        "pytorch_lightning.callbacks.Callback.__subclasses__",
        "pytorch_lightning.utilities.rank_zero.log",
        "pytorch_lightning.LightningModule",
        "pytorch_lightning.loggers.Nothing",
        "pytorch_lightning_evil.Logger",
        "builtins.eval",
        "",
        7,
        None,
        ["os.system"],
    ],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": [{"b": x}]}])
def test_only_lightnings_classes_are_called(name: object, wrap: object) -> None:
    settings = wrap({"_target_": name, "command": "true"})  # type: ignore[operator]
    with pytest.raises(InputError, match=r"^logger\.x\.(a\.0\.b\.)?_target_=.*command line"):
        check_targets("logger.x", settings)
    with pytest.raises(InputError, match="_target_="):
        build("logger.x", settings)


def test_lightnings_classes_may_be_named() -> None:
    callback = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "x"}
    check_targets("logger.x", {"_target_": CSV, "save_dir": "."})
    check_targets("logger.x", {"_target_": "pytorch_lightning.loggers.wandb.WandbLogger"})
    check_targets("trainer", {"_target_": "pytorch_lightning.Trainer", "callbacks": [callback]})


@pytest.mark.parametrize(
    "typed",
    [
        "logger.x._target_=fractions.Fraction",
        "+logger.x={_target_: fractions.Fraction}",
        "+trainer.callbacks=[{_target_: fractions.Fraction}]",
        "logger.x._target_=a.B,fractions.Fraction",
    ],
)
def test_the_command_line_may_name_any_class(typed: str) -> None:
    settings = {"_target_": "fractions.Fraction", "numerator": 3}
    guard(["data.root=fractions.Fraction", "seed=1"])
    with pytest.raises(InputError):
        build("logger.x", settings)
    guard([typed])
    assert build("logger.x", settings) == 3


SECRETS = """
    WANDB_API_KEY DB_PASSPHRASE GITHUB_PAT PAT AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MY_TOKEN
    GOOGLE_APPLICATION_CREDENTIALS GIT_CREDS HTTP_AUTH BASIC_AUTH_USER AUTHORIZATION OAUTH_CLIENT
    TLS_CERT CLIENT_CERTIFICATE PRIVATE_KEY_FILE SSHKEY SENTRY_DSN DATABASE_URL MONGODB_URI
    AZURE_STORAGE_CONNECTION_STRING DB_CONNSTR SESSION_ID COOKIE HASH_SALT SIGNING_KEY2 JWT
    MYSQL_PWD DB_PASS1 PGPASSWORD PGPASSFILE SLACK_WEBHOOK KEYTAB ENCRYPTION_KEYS db_passwd
"""
USUAL = """
    PATH PYTHONPATH PATCHCORE_CACHE HOME DATA_ROOT PATTERN AUTHOR AUTHORS XAUTHORITY PWD OLDPWD USER
    HOSTNAME TMPDIR TORCH_HOME HF_HOME CUDA_VISIBLE_DEVICES WANDB_PROJECT WANDB_MODE LC_ALL
    MLFLOW_TRACKING_URI TOKENIZERS_PARALLELISM SLURM_JOB_ID COMPASS BYPASS PASSES KEYBOARD MONKEY
    CERTAIN DESIGNING CONNECTION DATASET PATCH_SIZE PATIENT OMP_NUM_THREADS XDG_CACHE_HOME
"""


def test_names_of_secrets_are_told_from_usual_ones() -> None:
    assert [name for name in SECRETS.split() if not SECRET.search(name)] == []
    assert [name for name in USUAL.split() if SECRET.search(name)] == []


BAD = {
    "target": ("logger:\n  x:\n    _target_: os.system\n", "logger.x._target_=os.system: "),
    "nested": (
        f"logger:\n  x:\n    _target_: {CSV}\n    save_dir:\n      _target_: os.getcwd\n",
        "logger.x.save_dir._target_=os.getcwd: ",
    ),
    "list": (
        "trainer:\n  callbacks:\n  - _target_: os.getcwd\n",
        "trainer.callbacks.0._target_=os.getcwd: ",
    ),
    "interpolated": ("logger:\n  x:\n    _target_: ${oc.env:X}\n", "logger.x._target_=${oc.env:X}"),
    "decoded": ("logger:\n  x: \"${oc.decode:'{a: 1}'}\"\n", "${oc.decode:…}: "),
    "created": ("logger:\n  x: '${oc.create:{a: 1}}'\n", "${oc.create:…}: "),
    "secret": ("data:\n  root: /x/${oc.env:WANDB_API_KEY}\n", "${oc.env:WANDB_API_KEY}: a file"),
    "secret in a word": ("data:\n  root: ${oc.env:GITHUB_PAT}\n", "${oc.env:GITHUB_PAT}: a file"),
    "secret by default": (
        "data:\n  root: '${oc.env:NOTHING,${oc.env: MY_TOKEN}}'\n",
        "${oc.env:MY_TOKEN}: a file",
    ),
    "secret in parts": ("data:\n  root: ${oc.env:WANDB_${x}}\n", "${oc.env:WANDB_${x}: a file"),
    "in a text": ("logger:\n  x: '{_target_: os.system}'\n", "{_target_: os.system}: "),
    "callback": (
        "hydra:\n  callbacks:\n    x:\n      _target_: os.getcwd\n",
        "hydra.callbacks.x._target_=os.getcwd: ",
    ),
    "callback without target": ("hydra:\n  callbacks:\n    x: ${seed}\n", "hydra.callbacks: "),
    "environment": (
        "hydra:\n  job:\n    env_set:\n      LD_PRELOAD: x.so\n",
        "hydra.job.env_set: ",
    ),
    "log handler": (
        "hydra:\n  job_logging:\n    handlers:\n      x:\n        (): os.getcwd\n",
        "hydra.job_logging: ",
    ),
    "overrides": ("hydra:\n  overrides:\n    hydra: [+a=1]\n", "hydra.overrides: "),
    "parameter": (
        "hydra:\n  sweeper:\n    params:\n      +hydra.job.env_set.A: b\n",
        "hydra.sweeper.params.+hydra.job.env_set.A: ",
    ),
    "sampler": (
        "hydra:\n  sweeper:\n    sampler:\n      _target_: optuna.samplers.os.getcwd\n",
        "hydra.sweeper.sampler._target_=optuna.samplers.os.getcwd: ",
    ),
}


def told(folder: Path, content: str, header: str = "_global_", group: str = "experiment") -> str:
    """Message about an experiment file of somebody else."""
    path = folder / group / "theirs.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"# @package {header}\n{content}")
    (folder / "main.yaml").write_text(f"defaults: [_self_, {group}: theirs]\nlogger: {{}}\n")
    with initialize_config_dir(str(folder), **VERSION_BASE), pytest.raises(InputError) as error:
        compose("main")
    line = explain(error.value)
    assert line is not None and "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_key_with_a_dot_is_told_how_to_be_written(tmp_path: Path) -> None:
    said = told(tmp_path, "seed: 1\npatch.size: 5\n")
    assert said == "patch.size: write 'patch:' and in the next line, indented, 'size: …'"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("data:\n  nominal: 1.10\n", "line 3: data.nominal: 1.10 would be read as 1.1: "),
        ("data: {category: [a, 1_0]}\n", "line 2: data.category: 1_0 would be read as 10: "),
        ("data: {nominal: on}\n", "line 2: data.nominal: on would be read as True: write 'on' "),
        (
            "hydra:\n  sweeper:\n    params:\n      data.category: 1e3\n",
            "line 5: data.category: 1e3 would be read as 1000.0: write '1e3' with quotes",
        ),
    ],
)
def test_a_name_that_yaml_reads_as_other_characters_needs_quotes(
    tmp_path: Path, content: str, told: str
) -> None:
    assert globals()["told"](tmp_path, content).startswith(told)


def test_names_in_a_files_list_of_values_to_try_stay_names(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/theirs.yaml").write_text(
        "# @package _global_\ndata:\n  nominal: '1.10'\n  root: 5\n  masks: ...\n"
        "coreset: {ratio: 0.10}\n"
        "hydra:\n  sweeper:\n    params:\n      data.category: 1.10,1.1,a\n"
        "      coreset.ratio: 0.10,0.2\n      seed: 1\n"
    )
    (tmp_path / "main.yaml").write_text("defaults: [_self_, experiment: theirs]\n")
    with initialize_config_dir(str(tmp_path), **VERSION_BASE):
        found = compose("main", return_hydra_config=True)
    assert found.data == {"nominal": "1.10", "root": 5, "masks": "..."}
    assert found.coreset.ratio == 0.1
    tried = {"data.category": "'1.10','1.1',a", "coreset.ratio": "0.10,0.2", "seed": "1"}
    assert found.hydra.sweeper.params == tried


def test_a_value_that_a_file_leaves_open_has_to_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchcore.commands.references._texts", {})
    said = told(tmp_path / "a", "data:\n  root: ???\nimage: {size: 64}\n")
    advice = "give data.root=…, or write it in the file, or remove the line"
    assert said == f"data.root: ??? asks for a value: {advice}"
    monkeypatch.setattr("patchcore.commands.targets._typed", ["data.root=x"])
    with initialize_config_dir(str(tmp_path / "a"), **VERSION_BASE):
        assert compose("main").image == {"size": 64}
    monkeypatch.undo()
    (tmp_path / "a/experiment/more.yaml").write_text(
        "# @package _global_\ndefaults: [theirs]\ndata: {root: here}\n"
    )
    (tmp_path / "a/main.yaml").write_text("defaults: [_self_, {experiment: more}]\n")
    with initialize_config_dir(str(tmp_path / "a"), **VERSION_BASE):
        assert compose("main").data == {"root": "here"}


def test_all_settings_of_a_run_are_not_an_experiment_without_its_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["data", "image", "augment", "backbone", "layers", "method", "patch", "coreset"]
    names += ["index", "scoring", "ensemble", "decision", "label_free", "cache", "artifact"]
    content = "".join(f"{name}: {{}}\n" for name in names)
    assert "not its choice of data, method, coreset, index, " in told(tmp_path / "a", content)
    monkeypatch.setattr("patchcore.commands.targets._typed", ["coreset=random", "+method=padim"])
    defaults = "defaults: [override /data: mvtec]\n"
    assert "not its choice of index, " in told(tmp_path / "b", defaults + content)
    whole = yaml.safe_load(content)
    defaults_of_all = [{"override /index": "torch"}, {"data@_global_.data": "mvtec"}]
    assert _unsaid({"defaults": defaults_of_all, **whole}) == []
    del whole["patch"]
    assert _unsaid(whole) == []


@pytest.mark.parametrize(
    ("number", "value"), [("010", 8), ("-0o10", None), ("0x10", 16), ("0b11", 3), ("1:30", 90)]
)
def test_numbers_in_other_bases_are_refused_in_files(
    number: str, value: int | None, tmp_path: Path
) -> None:
    if value is not None:
        said = f"line 3: {number} would be read as {value}: write {value}, or '{number}' with quo"
        assert told(tmp_path, f"paper: {{}}\nseed: {number}\n").startswith(said)
    (tmp_path / "plain.yaml").write_text(
        f"a: 10\nb: [0, 0.5, 1_000, -3, 1e3]\nc: '{number}'\nd: 2020-01-01\ne: -0o10\n"
    )
    with initialize_config_dir(str(tmp_path), **VERSION_BASE):
        assert compose("plain") == {
            **{"a": 10, "b": [0, 0.5, 1000, -3, 1000.0], "c": number},
            **{"d": "2020-01-01", "e": "-0o10"},
        }


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": "a"}, "a.yaml names itself"),
        ({"a": "b", "b": "b"}, "b.yaml names itself"),
        ({"a": "b", "b": "c", "c": "b"}, "b.yaml, c.yaml name each other in a circle"),
    ],
)
def test_files_that_name_each_other_are_named(
    files: dict[str, str], said: str, tmp_path: Path
) -> None:
    for name, other in files.items():
        (tmp_path / f"{name}.yaml").write_text(f"defaults: [{other}, _self_]\n")
    with initialize_config_dir(str(tmp_path), **VERSION_BASE), pytest.raises(RecursionError) as it:
        compose("a")
    told = explain(it.value)
    assert told is not None
    assert told.replace("c.yaml, b.yaml", "b.yaml, c.yaml") == f"defaults: {said}: correct the file"


@pytest.mark.parametrize("kind", BAD)
def test_files_from_elsewhere_are_checked_as_they_are_read(kind: str, tmp_path: Path) -> None:
    content, said = BAD[kind]
    assert told(tmp_path, content).startswith(said)


@pytest.mark.parametrize(
    ("header", "group"), [("hydra.job_logging", "experiment"), ("_group_", "hydra/job_logging")]
)
def test_neither_header_nor_place_hides_a_part_of_hydra(
    header: str, group: str, tmp_path: Path
) -> None:
    content = "handlers:\n  x:\n    (): os.getcwd\n"
    assert told(tmp_path, content, header, group).startswith("hydra.job_logging: ")


def test_harmless_files_from_elsewhere_are_read(tmp_path: Path) -> None:
    content = f"""
logger:
  x:
    _target_: {CSV}
    save_dir: ${{oc.env:HOME,x}}
    name: ${{logger.x.version}}
    version: csv
hydra:
  sweep:
    dir: there/${{now:%Y}}
  sweeper:
    params:
      seed: 0,1
"""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/theirs.yaml").write_text(f"# @package _global_\n{content}")
    (tmp_path / "main.yaml").write_text("defaults: [_self_, experiment: theirs]\n")
    with initialize_config_dir(str(tmp_path), **VERSION_BASE):
        assert compose("main").logger.x.name == "csv"


def test_a_run_folders_settings_call_nothing(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    text = f"logger:\n  x:\n    _target_: pathlib.Path.touch\n    _args_: [{ran}]\n"
    (tmp_path / "config.yaml").write_text(f"defaults: [_self_]\n{text}")
    done = patchcore("train", "--config-path", str(tmp_path), f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 1 and not ran.exists()
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/config.yaml: logger.x._target_=pathlib.Path.touch: ")
