"""Mistyped overrides get one line with the form to type."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from patchcore.commands.flags import check_flags
from patchcore.commands.mistakes import CHOICES, GROUPS, PRESETS, renamed_in_file
from patchcore.commands.overrides import as_typed, check_overrides, choices, quoted
from patchcore.commands.settings_help import options, settings_help
from patchcore.errors import InputError
from tests.runs import patchcore

PATHS = [
    "/a/run=3",
    "/a/parts (2)",
    "/a/grün",
    "a&b",
    "~/x",
    "it's",
    'say "x"',
    "both' and\"",
    "end\\",
    "odd\\'",
    "$HOME/x",
    "a`b`",
    "yes!",
    "x[1]",
    "日本, x",
    "a;b#c",
    "{x",
    " lead",
]


def test_a_decimal_comma_is_no_sweep() -> None:
    told = r"^coreset\.ratio: 01 would be read as 1: write 1; a decimal number takes a point$"
    with pytest.raises(InputError, match=told):
        check_overrides(["-m", "coreset.ratio=0,01"])
    check_overrides(["-m", "data=mvtec", "data.category=01,02"])  # a text


@pytest.mark.parametrize("path", PATHS)
def test_the_quoted_form_means_the_text_itself(path: str) -> None:
    (word,) = shlex.split(quoted(f"data.root={path}"))  # as the shell reads it
    assert OverridesParser.create().parse_override(word).value() == path


def test_a_path_with_a_comma_is_told_as_it_was_typed() -> None:
    typed = ["data=folder", "data.nominal=/x/good, 2"]
    with pytest.raises(InputError) as caught:
        check_overrides(as_typed(typed), typed)
    assert f"for one value with a comma, type {quoted(typed[1])};" in str(caught.value)


@pytest.mark.parametrize("path", ["/a/run=3", "parts (2)", "grün", "a&b", "~/x", "x[1]", "it's"])
def test_a_path_that_needs_quotes_is_told_them(path: str) -> None:
    with pytest.raises(InputError) as caught:
        check_overrides(["data=mvtec", f"data.root={path}"])
    told = str(caught.value)
    assert told.startswith("data.root: the value needs its own quotes") and "\n" not in told
    assert told.endswith(f"type {quoted(f'data.root={path}')}")
    check_overrides(shlex.split(told.partition("type ")[2]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("patch=true", "patch=true: there is no such choice; there are average, p3_to_384, refer"),
        ("image=320", "image=320: there is no such choice; did you mean image.size=320? there"),
        ("coreset=0.1", "coreset=0.1: there is no such choice; there are all, approximate"),
        ("index=true", "index=true: there is no such choice; there are faiss_factory"),
        ("method=null", "method=null: there is no such choice; leave it out; there are padim"),
        ("layers=2+", "layers=2+: not understood: type levels, such as layers=2+3, or names of"),
        ("layers=-1", "layers=-1: not understood: type levels, such as layers=2+3, or names of"),
        ("+coreset=random", "+coreset=random: there is a choice already, which coreset=random re"),
        ("—multirun", "—multirun: begins with a dash: type hyphens, as in --multirun"),
        ("–-multirun", "–-multirun: begins with a dash: type hyphens, as in --multirun"),
        ("~seed", "~seed: other seeds follow from it: give seed=NUMBER instead"),
        ("=3", "=3: not understood: type KEY=VALUE"),
        ("a..b=3", "a..b=3: not understood: type KEY=VALUE"),
        ("seed=007", "seed: 007 would be read as 7: write 7; a decimal number takes a point"),
        ("coreset.ratio=0,05", "coreset.ratio: 05 would be read as 5: write 5; a decimal number"),
        ("data.root=a,b", "data.root: a comma separates several values: for one value"),
        (
            "layers.names=[1,2],[2,3]",
            "layers.names: a comma separates several values: one list of them is "
            "'layers.names=[1,2,3]'; --multirun tries",
        ),
        (
            "coreset.ratio=0,1",
            "coreset.ratio: a comma separates several values: a decimal number takes a point, as "
            "in coreset.ratio=0.1; --multirun tries",
        ),
        ("data.shots=1,5", "data.shots: a comma separates several values: give one; --multirun"),
        ("layers.names=[fc", "layers.names: the value needs its own quotes"),
        (
            "patch.size=1,,3,",
            "patch.size=1,,3,: a comma has no value before or after it: type patch.size=1,3;",
        ),
        (
            "data.category=[a, ,b]",
            "data.category=[a, ,b]: a comma has no value before or after it: type "
            "'data.category=[a,b]';",
        ),
        ("data.root=,a b", "data.root=,a b: a comma has no value before or after it: type 'data"),
        ("layers.names=[fc,]", "layers.names=[fc,]: a comma has no value before or after it: t"),
        ("?", "?: not understood: type KEY=VALUE"),
        ("seed=range(3,3)", "seed: the range from 3 to 3 holds no values"),
        ("seed=range(0,1,0)", "seed: the step of the range from 0 to 1 is zero"),
        (
            "seed=range(0,3,-1)",
            "seed: the range from 0 to 3 holds no values: the step has the",
        ),
        ("seed=range(0,1e9)", "seed: the range holds more than 1,000,000 values"),
        ("seed=range(0,inf)", "seed: the ends and the step of the range must be finite numbers"),
        ("seed=choice()", "seed: choice(…) is not understood: type it as in choice(1,2)"),
        ("seed=sort(1,a)", "seed: sort(…) is not understood: type it as in sort(3,1,2)"),
        (
            "method=[spade,padim]",
            "method: takes one choice, got 2; there are padim, patchcore, sp",
        ),
        ("coreset.ratio=interval(0.2,0.1)", "coreset.ratio: the interval from 0.2 to 0.1 holds no"),
    ],
)
def test_mistakes_are_one_line(argument: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_overrides([argument])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_what_is_right_passes() -> None:
    check_overrides(
        ["--config-dir", "a=b", "--cfg", "job", "-m", "seed=0,1", "patch=average,reference"]
    )
    check_overrides(["data=[mvtec]", "preset=[spade,rad]"])
    check_overrides(["logger=[csv,wandb]", "~data", "+a.b={c:1}", "x=a b"])
    check_overrides(["curve=[0.1,0.2]", "layers.names=['2',layer3]", "hydra.run.dir=x"])
    check_overrides(["-m", "seed=range(3,0,-1)", "seed=range(0,1,0.1)", "seed=range(4)"])
    check_overrides(["coreset.ratio=interval(0.1,0.2)", "data.root='/x/grün'", "method=spade"])


def test_groups_have_their_choices() -> None:
    assert choices()["coreset"] == ["all", "approximate", "greedy", "learned", "random"]
    assert "paper/table_1" in choices()["experiment"] and "layers" not in choices()


def test_help_tells_every_option_and_choice_in_lines_that_fit() -> None:
    told = settings_help(80)
    assert max(map(len, told.splitlines())) <= 80
    assert "schema" not in told
    for group, names in choices().items():
        assert group == "hydra" or "/" in group or all(name in told for name in names)
    keys = [key.partition(" ")[0] for key, _, _ in options()]
    assert len(keys) == len(set(keys)) > 60 and all(f"  {key}" in told for key in keys)
    expected = (
        "patch.size: integer = 3\n"
        + " " * 24
        + "p of Eq. 1: the side of a neighbourhood; has to be odd"
    )
    assert expected in told
    assert "coreset.dimension (approximate, greedy): integer = 128" in told
    assert "share of the patches that are kept [in (0, 1]]" in told
    piped = patchcore("train", "--help").out.rstrip("\n")
    assert "".join(piped.split()) == "".join(told.split())
    for key, _, _ in options():
        assert len(re.findall(rf"^  {re.escape(key)}: .*\w", piped, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("patch=3", "patch.size=3"),
        ("patch=1,3", "patch.size=1,3"),
        ("coreset=0.1", "coreset.ratio=0.1"),
        ("coreset=1e-2,0.1", "coreset.ratio=1e-2,0.1"),
        ("image=320", "image.size=320"),
        ("layers=2+3", "layers.names=[2,3]"),
        ("layers=2+3,1", "layers.names=[2,3],[1]"),
        ("layers=[2,layer3]", "layers.names=[2,layer3]"),
        ("patch=average", "patch=average"),
        ("coreset=random", "coreset=random"),
        ("patch.size=3", "patch.size=3"),
    ],
)
def test_a_value_given_to_a_group_is_its_main_settings(argument: str, meant: str) -> None:
    assert as_typed([argument]) == [meant]


def test_an_artifact_is_wanted_or_not() -> None:
    with pytest.raises(InputError, match=r"^artifact=maybe: .*; there are true \(all\), false"):
        as_typed(["artifact=best,maybe"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=spade", "model=spade: is now called method=spade"),
        ("model.channels=3", "model.channels=3: is now called method.channels=3"),
        ("method=spade,patchcore_1", "method=patchcore_1: is now called preset=patchcore_1"),
        ("search=accuracy_memory", "search=accuracy_memory: is now called hparams_search=accuracy"),
        ("patch=p1,p3", "patch=p1: is now called patch.size=1"),
        ("layers=only2", "layers=only2: is now called layers=2"),
        ("scoring=cosine", "scoring=cosine: is now called scoring.distance=cosine"),
        ("experiment=paper/table_2", "experiment=paper/table_2: is now called experiment=paper/t"),
    ],
)
@pytest.mark.parametrize("several", [[], ["--multirun"]])
def test_what_is_renamed_is_told_with_its_successor(
    argument: str, message: str, several: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        check_overrides([*several, argument])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_successor_is_there() -> None:
    keys = {key.partition(" ")[0] for key, _, _ in options()} | {"layers"}
    for successor in CHOICES.values():
        group, _, choice = successor.partition("=")
        assert choice in choices().get(group, []) or group in keys
    assert set(PRESETS) <= set(choices()["preset"]) and set(GROUPS.values()) <= set(choices())


def test_the_home_folder_is_known_in_folders_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/it")
    assert as_typed(["--config-dir=~/own"]) == ["--config-dir=/home/it/own"]
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        for text in ("~/a b", "'~/a b'", '"~/a b"'):
            assert as_typed([f"{key}={text}"]) == [f"{key}='/home/it/a b'"]
        assert as_typed([f"{key}=a~"]) == [f"{key}=a~"]
        with pytest.raises(InputError, match=f"^{key}: ~nobody-here/a: ~ leads nowhere"):
            as_typed([f"{key}=~nobody-here/a"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"defaults": [{"override /method": "patchcore_10"}]}, "preset=patchcore_10"),
        ({"defaults": [{"override /model": "spade"}]}, "method=spade"),
        ({"model": {"channels": 3}}, "method"),
        ({"hydra": {"sweeper": {"params": {"search": "x", "patch": "p3,p5"}}}}, "hparams_search=x"),
    ],
)
def test_a_settings_file_with_old_names_is_told(content: dict[str, object], problem: str) -> None:
    told = next(renamed_in_file(content, in_root=True))
    assert told.endswith(f"is now called {problem}")
    assert list(renamed_in_file({"defaults": [{"override /method": "spade"}]}, True)) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mulitrun"], "--mulitrun: there is no such option; did you mean --multirun?"),
        (["a=1", "-x", "b=2"], "-x: there is no such option; patchcore train --help lists them"),
        (["a=1", "-m", "b=1,2"], "b=1,2: a flag is between this setting and earlier ones"),
        (["--config-dri=x"], "--config-dri: there is no such option; did you mean --config-dir?"),
        (["--cfg"], "--cfg/-c: expected one argument"),
        (["--cfg", "jobs"], "--cfg/-c: invalid choice: 'jobs' (choose from"),
        (["-m", "--cfg", "job"], "--multirun and --cfg exclude each other: leave one out"),
        (
            ["--config-dir", "A", "seed=1", "--config-dir=B"],
            "--config-dir: takes one value, got A and B: give one, and the other by "
            "hydra.searchpath=[A]",
        ),
        (["-cp", "/a", "--config-path", "/b"], "--config-path: takes one value, got /a and /b: gi"),
        (["-cn", "a", "-cn=a"], "--config-name: takes one value, got a and a: give one"),
        (["--resolve"], "--resolve has no effect without --cfg: give --cfg job"),
        (["--run", "--verson"], "--verson: there is no such option; did you mean"),
    ],
)
def test_flags_that_hydra_does_not_have(arguments: list[str], told: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(told)}"):
        check_flags(arguments)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--cfg job --resolve",
        "--multirun a=1,2",
        "-m",
        "-m a=1 b=2",
        "a=1 --help b=2",
        "--config-dir A -cn config --config-path pkg://a -m a=1",
        "--version",
    ],
)
def test_flags_that_hydra_has(flags: str) -> None:
    check_flags(flags.split())


def test_settings_of_a_run_are_no_main_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\ndata:\n  root: /x\n")
    for name in ([], ["--config-name", "config"], ["--config-name", "config.yaml"]):
        with pytest.raises(InputError, match=rf"^--config-path: {tmp_path}/config\.yaml has no li"):
            check_flags(["--config-path", str(tmp_path), *name, "logger=none"])
    (tmp_path / "config.yaml").write_text("# mine\ndefaults:\n  - schema\n")
    check_flags(["--config-path", str(tmp_path), "logger=none"])
    (tmp_path / "config.yaml").write_text('{"defaults": [_self_]}')
    check_flags(["--config-path", str(tmp_path), "logger=none"])
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path.parent)
    check_flags(["--config-path", tmp_path.name, "logger=none"])  # in the package, for Hydra


def test_a_file_with_the_name_of_the_main_settings_is_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People try to repeat a run so."""
    given = ["--config-dir", str(tmp_path), "--config-name", "config"]
    check_flags(given)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(InputError, match=rf"^--config-name: {tmp_path}/config\.yaml would not be"):
        check_flags(given)
    assert capsys.readouterr().err == ""
    check_flags([*given[:2], "seed=1"])
    told = f"warning: {tmp_path}/config.yaml is not read, as config.yaml is the name of the built"
    assert capsys.readouterr().err.startswith(told)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    with pytest.raises(InputError, match=rf"^--config-name: {tmp_path}/mine\.yaml has no list of"):
        check_flags([*given[:3], "mine"])
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\n")
    check_flags([*given[:3], "mine"])
