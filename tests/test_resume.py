"""Finished runs found again: what is remembered of them is checked before it is relied upon."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from patchcore.data.sample import Sample
from patchcore.report.folders import Images
from patchcore.report.images import places_of
from patchcore.report.reading import read_scores
from patchcore.resume import (
    FINGERPRINT_FILE,
    PROVENANCE_FILE,
    Finished,
    copy_pictures,
    copy_scores,
    damage,
    finished_fingerprint,
    read_provenance,
    write_provenance,
)
from patchcore.runfolder import CONTENTS, listed
from patchcore.yaml_text import settings_in

METRICS: dict[str, Any] = {
    "image_auroc": 1.0,
    "aupro": None,
    "test_images": 2,
    "seconds": {"extract": 1.0, "score": 0.5},
    "undefined": {"aupro": "no test image has a mask"},
}


def finished_run(folder: Path, finished: Finished, name: str = "a1") -> Path:
    """A run that has finished."""
    folder.mkdir(parents=True)
    finished.started(name, folder)
    (folder / FINGERPRINT_FILE).write_text(f"{name}\n")
    write_provenance(folder, {"fingerprint": name, "settings": {}, "warm": ["score"]})
    (folder / "scores.csv").write_text(
        "path,label,defect_type,score\nold/a.png,0,good,1.5\nold/b.png,1,scratch,2.5\n"
    )
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def test_a_finished_run_is_found_by_its_fingerprint_alone(tmp_path: Path) -> None:
    finished = Finished(tmp_path / "runs")
    assert finished.find("a1") is None
    folder = finished_run(tmp_path / "a ü", finished)
    assert finished.find("a1") == folder.resolve() and finished.find("a2") is None
    assert finished_fingerprint(folder) == "a1" and damage(folder) is None
    assert finished.find("a1", ["figures/scores.png"]) is None  # it has drawn none
    (folder / "figures").mkdir()
    (folder / "figures/scores.png").touch()
    assert finished.find("a1", ["figures/scores.png"]) == folder.resolve()
    (folder / "metrics.json").unlink()  # it has begun, no more
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert finished.find("a1") is None and finished_fingerprint(folder) is None


def test_a_run_is_its_own_first_choice(tmp_path: Path) -> None:
    finished = Finished(tmp_path / "runs")
    folders = [finished_run(tmp_path / str(i), finished).resolve() for i in range(4)]
    assert finished.find("a1") in folders
    assert [finished.find("a1", folder=folder) for folder in folders] == folders
    assert finished.find("a1", folder=tmp_path / "new") in folders


def test_a_run_in_its_own_folder_is_found_without_a_record(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "a", Finished(tmp_path / "runs")).rename(tmp_path / "b")
    elsewhere = Finished(tmp_path / "other")
    assert elsewhere.find("a1", folder=folder) == folder.resolve()
    assert elsewhere.find("a2", folder=folder) is None and elsewhere.find("a1") is None
    elsewhere.started("a1", folder)
    assert elsewhere.find("a1") == folder.resolve()
    (folder / "metrics.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"metrics\.json is damaged .* the run is made again"):
        assert Finished(tmp_path / "third").find("a1", folder=folder) is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", ""),
        ("metrics.json", "\0" * 100),
        ("metrics.json", json.dumps(METRICS)[:-30]),
        ("metrics.json", "[]"),
        ("metrics.json", "{}"),
        ("metrics.json", json.dumps({**METRICS, "image_auroc": "0.9"})),
        ("metrics.json", json.dumps({**METRICS, "image_auroc": float("nan")})),
        ("metrics.json", json.dumps({**METRICS, "image_auroc": [0.9]})),
        ("metrics.json", json.dumps({**METRICS, "image_auroc": True})),
        ("metrics.json", json.dumps({**METRICS, "seconds": {"score": -1}})),
        ("metrics.json", json.dumps({**METRICS, "seconds": 3})),
        ("metrics.json", json.dumps({**METRICS, "test_images": None})),
        ("scores.csv", None),
        ("scores.csv", ""),
        ("scores.csv", "path,label,defect_type,score\na.png,0,good,1.5\n"),
        ("scores.csv", "path,label,defect_type,score\na.png,0,good,1.5\nb.png,1,x,nan\n"),
        ("scores.csv", "path,label,defect_type,score\na.png,0,good,1.5\nb.png,1\n"),
        ("scores.csv", "path,label,defect_type,score\na.png,0,good,9.5\nb.png,1,x,2.5\n"),
        ("scores.csv", "path,label,defect_type,score\na.png,1,x,1.5\nb.png,1,x,2.5\n"),
        (PROVENANCE_FILE, None),
        (PROVENANCE_FILE, "{"),
        (PROVENANCE_FILE, '{"fingerprint": "other", "settings": {}, "warm": []}'),
        (PROVENANCE_FILE, '{"fingerprint": "a1", "settings": {}}'),
    ],
)
def test_damaged_results_are_told_and_not_taken_over(
    tmp_path: Path, file: str, content: str | None
) -> None:
    finished = Finished(tmp_path / "runs")
    folder = finished_run(tmp_path / "run", finished)
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    flaw = r"(is damaged \(.+\)|is missing)"
    with pytest.warns(UserWarning, match=rf"{file} {flaw}; the run is made again"):
        assert finished.find("a1") is None
    other = finished_run(tmp_path / "other", finished)  # an intact one is found beside it
    told = rf"{file} {flaw}; {other.resolve()} has the same results"
    with pytest.warns(UserWarning, match=told):
        assert finished.find("a1", folder=folder) == other.resolve()


@pytest.mark.parametrize("file", [FINGERPRINT_FILE, PROVENANCE_FILE])
def test_a_pipe_in_a_finished_runs_folder_is_not_waited_for(tmp_path: Path, file: str) -> None:
    finished = Finished(tmp_path / "runs")
    folder = finished_run(tmp_path / "run", finished)
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert finished.find("a1") is None
    assert finished_fingerprint(folder) is None


def test_a_pipe_in_place_of_a_runs_list_or_settings_is_not_waited_for(tmp_path: Path) -> None:
    for name in (CONTENTS, "config.yaml"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        listed(tmp_path)
    assert settings_in(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"relative/folder", b"\xff\xfe"])
def test_damaged_pointers_are_dropped(tmp_path: Path, content: bytes) -> None:
    finished = Finished(tmp_path / "runs")
    folder = finished_run(tmp_path / "run", finished)
    (pointer,) = (tmp_path / "runs/a1").iterdir()
    pointer.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{pointer} is damaged; it is dropped"):
        assert finished.find("a1") is None
    assert not pointer.exists()
    finished.started("a1", folder)
    assert finished.find("a1") == folder.resolve()


def test_pointers_to_folders_that_are_gone_or_used_again_lead_nowhere(tmp_path: Path) -> None:
    finished = Finished(tmp_path / "runs")
    folder = finished_run(tmp_path / "run", finished)
    (folder / FINGERPRINT_FILE).write_text("a2\n")
    assert finished.find("a1") is None
    folder.rename(tmp_path / "elsewhere")
    assert finished.find("a1") is None


def test_memory_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    (tmp_path / "run").mkdir()
    with pytest.warns(
        UserWarning, match="runs are not recorded in the cache .*, and may be computed again"
    ) as told:
        for name in ("a1", "b1"):  # of two points of a multirun
            Finished(tmp_path / "runs").started(name, tmp_path / "run")
    assert len(told) == 1
    assert Finished(tmp_path / "runs").find("a1") is None


def test_results_are_taken_over_under_the_paths_of_this_run(tmp_path: Path) -> None:
    source = finished_run(tmp_path / "run", Finished(tmp_path / "runs"))
    folder = tmp_path / "new"
    folder.mkdir()
    samples = [Sample(Path("new, place/a.png"), 0), Sample(Path("new/b.png"), 1, "scratch")]
    names = copy_scores(source, samples, folder)
    rows = (folder / "scores.csv").read_text().splitlines()
    assert rows[0] == "path,label,defect_type,score,category"  # the source is of an earlier version
    assert rows[1:] == ['"new, place/a.png",0,good,1.5,', "new/b.png,1,scratch,2.5,"]
    copy_scores(
        folder, samples, folder, ["nut", "bolt"]
    )  # this run's names, not those of the source
    assert [score.score for score in read_scores(folder)] == [1.5, 2.5]
    rows = (folder / "scores.csv").read_text().splitlines()
    assert rows[1:] == ['"new, place/a.png",0,good,1.5,nut', "new/b.png,1,scratch,2.5,bolt"]
    assert read_provenance(source)["warm"] == ["score"]
    # So are pictures of single images; of those called wrong there may be none.
    (source / "figures").mkdir(exist_ok=True)
    (folder / "figures").mkdir()
    before = [row.split(",")[0] for row in (source / "scores.csv").read_text().splitlines()[1:]]
    listed = f"path,picture\n{before[1]},figures/images/b.png\n"
    for which, text in ((Images.all, listed), (Images.wrong, "path,picture\n")):
        (source / "figures" / which.list_name).write_text(text)
    copy_pictures(source, Images.wrong, names, places_of(samples), folder)
    assert (folder / "figures/images_wrong.csv").read_text().splitlines() == ["path,picture"]
    (source / "figures/images").mkdir()
    (source / "figures/images/b.png").write_bytes(b"picture")
    copy_pictures(source, Images.all, names, places_of(samples), folder)
    copied = (folder / "figures/images_all.csv").read_text().splitlines()
    assert copied == ["path,picture", "new/b.png,figures/images/new/b.png.png"]
    assert (folder / "figures/images/new/b.png.png").read_bytes() == b"picture"
    assert not (folder / "figures/images/b.png").exists()


def test_records_that_may_not_be_read_stop_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.warns(UserWarning, match=r"^runs are not recorded in the cache .*, and may be"):
        Finished(tmp_path / "runs").started("name", tmp_path)
