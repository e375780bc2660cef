"""The README: its commands, tables and links."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException

from patchcore.commands.completion import Words
from patchcore.commands.completion import words as find_words
from patchcore.commands.overrides import choices
from tests.documents import blocks, check_command, commands, harmless
from tests.images import write_mvtec
from tests.runs import REPOSITORY, patchcore

README = (REPOSITORY / "README.md").read_text()


@pytest.fixture(scope="module")
def all_words() -> Words:
    return find_words()


@pytest.mark.parametrize("line", dict.fromkeys(commands(README)))
def test_every_command_is_taken_by_both_shells_and_by_the_program(
    line: str, all_words: Words
) -> None:
    check_command(line, all_words)


def test_what_a_shell_would_change_is_found() -> None:
    assert harmless("patchcore train 'curve=[0.1,0.2]' data.root=DIR")
    assert not harmless("patchcore train curve=[0.1,0.2]")
    assert not harmless("patchcore train layers.names={a,b}")
    with pytest.raises(HydraException, match=r"coreset\.ratoi"):
        check_command("patchcore train coreset.ratoi=0.1", Words({}, {}, []))
    with pytest.raises(AssertionError):
        check_command("patchcore report --oot x", Words({"report": ["--out"]}, {}, []))


def test_every_group_is_in_the_table_and_all_that_it_names_are_choices(all_words: Words) -> None:
    rows = dict(re.findall(r"^\| `([\w/]+)` \| [^|]* \| (.*) \|$", README, re.MULTILINE))
    groups = {
        group: names
        for group, names in choices().items()
        if "/" not in group.removeprefix("hydra/") and group != "hydra"
    }
    assert groups.keys() <= rows.keys()
    for group, names in groups.items():
        named = set(re.findall(r"`(\w+)`", rows[group]))
        options = (few for key, few in all_words.values.items() if key.startswith(f"{group}."))
        assert named <= {*names, *(value for few in options for value in few)}, group
        assert len(named) >= 2 or group == "experiment"  # the reference lists all


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    broken = [link for link in links if "://" not in link and not (REPOSITORY / link).exists()]
    assert broken == []


def test_the_python_example_runs() -> None:
    (source,) = blocks(README, "python")
    names = {"nominal_images": torch.rand(2, 3, 64, 64), "test_images": torch.rand(1, 3, 64, 64)}
    exec(source, names)
    prediction = names["prediction"]
    assert prediction.score.shape == (1,) and prediction.map.shape == (1, 64, 64)


def typed_together(first: str) -> list[list[str]]:
    """Commands of the README's block that begins with `first`."""
    (block,) = [each for each in blocks(README, "bash") if each.startswith(first)]
    return [shlex.split(line) for line in block.splitlines()]


def test_parts_are_inspected_in_four_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the export's runtime: pip install patchcore[export]")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    nut = write_mvtec(tmp_path / "data", (64, 64))
    (nut / "train/good").rename("GOOD")
    Path("MORE").mkdir()
    (nut / "test/good/000.png").rename("MORE/000.png")
    (nut / "test").rename("IMAGES")
    images = sorted(str(path) for path in Path("IMAGES").rglob("*.png"))

    typed = typed_together("patchcore train data=folder data.nominal=GOOD artifact=true")
    assert [words[1] for words in typed] == ["train", "predict", "extend", "export"]
    told = "decision.false_alarms=0.01 needs 99 nominal images: 3 guarantee 0.25"
    found = {}
    for words in typed:
        done = patchcore(*words[1:])
        assert done.code in ((0, 3) if words[1] == "predict" else (0,)), done.err
        found[words[1]] = done
    assert f"warning: {told}" in found["train"].err
    with Path("results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == images
    assert {row["verdict"] for row in rows} <= {"anomalous", "nominal"}
    assert (found["predict"].code == 3) == any(row["verdict"] == "anomalous" for row in rows)
    exported = patchcore("predict", "parts/artifact-onnx", *images)
    kept = patchcore("predict", "parts/artifact", *images)
    scores = [
        [float(row["score"]) for row in csv.DictReader(done.out.splitlines())]
        for done in (kept, exported)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
