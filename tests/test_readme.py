"""Commands of the README, as they stand there, run one after the other."""

import csv
import shlex
from pathlib import Path

import pytest

from tests.images import write_mvtec
from tests.runs import REPOSITORY, patchcore

pytest.importorskip("onnxruntime", reason="the export's runtime: pip install 'patchcore[export]'")


def commands(first: str) -> list[list[str]]:
    """Commands of the README's block that begins with `first`."""
    blocks = (REPOSITORY / "README.md").read_text().split("```bash\n")[1:]
    (block,) = [each.partition("```")[0] for each in blocks if each.startswith(first)]
    return [shlex.split(line) for line in block.splitlines()]


def test_parts_are_inspected_in_four_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    nut = write_mvtec(tmp_path / "data", (64, 64))
    (nut / "train/good").rename("GOOD")
    Path("MORE").mkdir()
    (nut / "test/good/000.png").rename("MORE/000.png")
    (nut / "test").rename("IMAGES")
    images = sorted(str(path) for path in Path("IMAGES").rglob("*.png"))

    typed = commands("patchcore train data=folder data.nominal=GOOD artifact=true")
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
