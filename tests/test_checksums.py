"""Finished runs whose files were changed later are noticed, and those that only moved are not."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchcore import runner
from patchcore.checksums import CHECKSUMS, altered, amended, write_checksums
from patchcore.keeping import ArtifactConfig, Contest, Keep
from patchcore.metrics import Objective
from patchcore.report.folders import Images
from patchcore.report.reading import read_run
from patchcore.report.run import read_results
from patchcore.report.sentences import sentence
from patchcore.report.table import read_runs
from patchcore.resume import Finished, damage
from tests.images import write_mvtec
from tests.runs import config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with pictures and an artifact, beside its images and cache."""
    root = tmp_path_factory.mktemp("made")
    write_mvtec(root, (40, 36))
    kept = ArtifactConfig(Keep("all"))
    runner.run(config(root, pictures=Images.all, artifact=kept), root / "run")
    return root / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def in_json(*keys: str, to: Any) -> Callable[[str], str]:
    def edit(text: str) -> str:
        whole = json.loads(text)
        found = whole
        for key in keys[:-1]:
            found = found[key]
        assert found[keys[-1]] != to
        found[keys[-1]] = to
        return json.dumps(whole, indent=2)

    return edit


EDITS: dict[str, tuple[str, Callable[[str], str]]] = {
    "pixel AUROC": ("metrics.json", in_json("pixel_auroc", to=0.987)),
    "AUPRO": ("metrics.json", in_json("aupro", to=0.987)),
    "AP": ("metrics.json", in_json("image_ap", to=0.123)),
    "count": ("metrics.json", in_json("memory_patches", to=3)),
    "seconds": ("metrics.json", in_json("seconds", "coreset", to=0.001)),
    "auroc": ("metrics.json", in_json("image_auroc", to=0.01)),
    "costs": ("provenance.json", in_json("warm", to=["coreset"])),
    "device": ("provenance.json", in_json("device", to="cuda")),
    "type": ("scores.csv", lambda text: text.replace(",good,", ",fine,", 1)),
    "line ends": ("scores.csv", lambda text: text + "\n"),
    "picture": ("figures/images_all.csv", lambda text: text.replace("figures/images/", "x/", 1)),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_that_was_edited_after_its_run_is_named(run: Path, name: str) -> None:
    file, edit = EDITS[name]
    before = (run / file).read_bytes().decode()
    after = edit(before)
    assert after != before and read_run(run).finished and damage(run) is None
    (run / file).write_bytes(after.encode())
    told = f"{file}: was changed after the run had finished"
    found = read_run(run)
    assert found.problem == f"damaged: {told}" and not found.metrics
    with pytest.raises(ValueError, match=told):
        read_results(run)
    assert damage(run) == f"{run / file} is damaged (it was changed after the run had finished)"


def test_edited_settings_are_marked_and_their_figures_kept(run: Path) -> None:
    before, text = read_run(run), (run / "config.yaml").read_text()
    assert not before.edited and "changed" not in sentence(read_runs([run]))
    (run / "config.yaml").write_text(text.replace("ratio: 0.5", "ratio: 0.1"))
    found, table = read_run(run), read_runs([run])
    assert found.finished and found.edited and found.metrics == before.metrics
    assert table.status(table.runs[0]) == "finished; config.yaml was changed or removed afterwards"
    told = sentence(table)
    assert "config.yaml of 1 run was changed or removed after the run had finished" in told
    assert damage(run) is None  # a resumed run writes it anew
    with pytest.raises(ValueError, match=r"config\.yaml: was changed after the run had finished"):
        read_results(run)


def test_a_file_that_is_missing_is_named(run: Path) -> None:
    (run / "scores.csv").unlink()
    assert read_run(run).problem == "damaged: scores.csv: is missing"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000, "{}" + " " * (1 << 16)])
def test_damaged_checksums_are_told(run: Path, text: str) -> None:
    (run / CHECKSUMS).write_text(text)
    assert read_run(run).problem.startswith("damaged: .checksums: is damaged; without this file")
    assert f"{run / CHECKSUMS} is damaged" in str(damage(run))


def test_runs_of_earlier_versions_have_no_checksums(run: Path) -> None:
    (run / CHECKSUMS).unlink()
    text = EDITS["pixel AUROC"][1]((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(text)
    assert read_run(run).metrics["pixel_auroc"] == 0.987 and damage(run) is None
    with amended(run, "provenance.json"):
        pass
    assert not (run / CHECKSUMS).exists()


def test_what_may_change_after_a_run_is_not_marked(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "artifact")  # as of a point that a better one follows
    next(run.glob("figures/images/**/*.png")).write_bytes(b"drawn again")
    (run / ".hydra").mkdir()
    (run / ".hydra/overrides.yaml").write_text("[seed=0]")
    (run / "wandb").mkdir()
    (run / "notes.txt").write_text("mine")
    moved = run.rename(tmp_path / "renamed")
    assert altered(moved) is None and read_run(moved).finished and damage(moved) is None
    read_results(moved)


def test_a_run_that_is_resumed_has_checksums_of_its_own(made: Path, tmp_path: Path) -> None:
    """A point of a multirun notes it later, and pictures are taken over or left out."""
    root = made.parent
    kept = ArtifactConfig(Keep("best"))
    wanted = config(root, pictures=Images.all, artifact=kept, resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settings, multirun in (
            (wanted, None),
            (wanted, tmp_path),  # only its note is new
            (replace(wanted, pictures=Images.none), tmp_path),
            (wanted, tmp_path / "other"),
        ):
            done = runner.run(settings, tmp_path / "again", multirun=multirun)
            assert "finished before" in done.text
            assert altered(done.folder) is None
    covered = json.loads((tmp_path / "again" / CHECKSUMS).read_text())
    assert {"provenance.json", "resumed_from.txt", "figures/images_all.csv"} <= set(covered)


def test_a_process_that_ends_while_it_notes_leaves_a_sound_run(run: Path) -> None:
    with pytest.raises(KeyboardInterrupt), amended(run, "provenance.json"):
        text = (run / "provenance.json").read_text()
        (run / "provenance.json").write_text(text + "\n")
        raise KeyboardInterrupt
    assert altered(run) is None


def test_an_edited_run_is_computed_again(made: Path, run: Path, tmp_path: Path) -> None:
    finished = Finished(tmp_path / "runs")
    name = (run / "fingerprint.txt").read_text().strip()
    finished.started(name, run)
    assert finished.find(name) == run
    (run / "metrics.json").write_text(EDITS["AUPRO"][1]((run / "metrics.json").read_text()))
    with pytest.warns(UserWarning, match="metrics.json is damaged .* the run is made again"):
        assert finished.find(name) is None


def test_an_edited_point_is_not_the_best(tmp_path: Path) -> None:
    contest = Contest(tmp_path, Objective["memory_patches"])
    for name, patches in (("0", 10), ("1", 20)):
        point = tmp_path / name
        (point / "artifact").mkdir(parents=True)
        (point / "artifact/artifact.yaml").touch()
        (point / "metrics.json").write_text(json.dumps({"memory_patches": patches, "seconds": {}}))
        note = {"multirun": str(tmp_path.resolve()), "point": str(point.resolve())}
        (point / "provenance.json").write_text(json.dumps({"best_of": note}))
        write_checksums(point)
    assert [path.name for path in contest.holders()] == ["0", "1"]
    assert not contest.won(tmp_path / "2", {"memory_patches": 15, "seconds": {}}, [])
    (tmp_path / "0/metrics.json").write_text('{"memory_patches": 1, "seconds": {}}')
    assert contest.won(tmp_path / "2", {"memory_patches": 15, "seconds": {}}, [])
