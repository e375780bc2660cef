"""Artifacts that runs leave: on request, one a multirun, and with the scores of the test."""

import csv
import json
import shutil
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from patchcore import GreedyConfig, InputError, load, runner
from patchcore.artifact import save
from patchcore.artifact_files import write_folder
from patchcore.cache import CacheConfig
from patchcore.commands.overrides import as_typed
from patchcore.commands.sweep import Multirun, _setting, _tell_best
from patchcore.config import Config, Objective
from patchcore.data.images import read_image
from patchcore.data.mvtec import MVTecConfig
from patchcore.digests import digest, file_digest
from patchcore.extend import extend
from patchcore.keeping import POINT_OF, ArtifactConfig, Contest, Keep, Keeper, holders, stays
from patchcore.methods import Detector, PatchCoreConfig
from patchcore.run_artifact import _images, write_artifact
from patchcore.runfolder import listed
from tests.images import write_image, write_mvtec
from tests.processes import execute
from tests.run_folders import write_run
from tests.runs import TINY, Outcome, config, patchcore
from tests.users import plain_user, protect

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    write_mvtec(root, (40, 36))
    return root


def run(root: Path, place: Path, *overrides: str, name: str = "run") -> Outcome:
    """A tiny run in `place`/`name`, or a multirun if the overrides say so; without `~KEY`."""
    given = {override.partition("=")[0].lstrip("~") for override in overrides}
    common = [
        *TINY,
        *("logger=none", "figures=false", "trainer.enable_progress_bar=false"),
        *("data=mvtec", f"data.root={root}", "data.category=nut", "data.batch_size=2"),
        *(f"cache.root={place / 'cache'}", "cache.enabled=true"),
        f"hydra.{'sweep' if '--multirun' in overrides else 'run'}.dir={place / name}",
    ]
    kept = [each for each in common if each.partition("=")[0] not in given]
    asked = [each for each in overrides if each[0] != "~"]
    return patchcore("train", *sorted([*kept, *asked], key=lambda each: each != "--multirun"))


def test_a_model_finds_its_images_from_any_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert run(root, tmp_path, "data.root=.", "artifact=true").code == 0
    other = tmp_path / "other"
    write_mvtec(other, (50, 46))  # where other images have the same names
    monkeypatch.chdir(other)
    assert patchcore("test", str(tmp_path / "run/artifact"), "--output", "out").code == 0
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "run", Path("out"))
    )
    assert theirs["test_images"] == ours["test_images"]
    assert theirs["image_auroc"] == ours["image_auroc"]
    assert {path.parents[3] for path, _ in rows(Path("out"))} == {root}


def rows(folder: Path) -> list[tuple[Path, float]]:
    with (folder / "scores.csv").open(newline="") as file:
        return [(Path(row["path"]), float(row["score"])) for row in csv.DictReader(file)]


def scored(artifact: Path, paths: Sequence[Path]) -> list[float]:
    """Scores of images by an artifact, in batches like those of the run."""
    inspector = load(artifact)
    scores: list[float] = []
    for i in range(0, len(paths), 2):
        prepared = [inspector.prepare(read_image(path)) for path in paths[i : i + 2]]
        if isinstance(prepared[0], tuple):
            batch: Any = [torch.from_numpy(np.stack(each)) for each in zip(*prepared, strict=True)]
        else:
            batch = torch.from_numpy(np.stack(prepared))
        scores += inspector.score(batch).score.tolist()
    return scores


def grow(artifact: Path, image: Path) -> bytes:
    """Extend an artifact by an image, and return its new description."""
    grown = load(artifact)
    extend(grown, [image])
    save(grown, artifact, weights=(artifact / "weights.safetensors").exists())
    return (artifact / "artifact.yaml").read_bytes()


# --- one run ----------------------------------------------------------------------------------

ENSEMBLE = (
    "ensemble.members=[{image:{size:32,view:square,resize:32,stretch:true,crop:null}},"
    "{layers:{names:[layer2]},image:{size:24,view:square,resize:24,stretch:true,crop:null}}]"
)
METHODS = {
    "patchcore": ["scoring.reweight=3"],
    "spade": ["method=spade", "method.storage=float16", "~coreset.ratio", "~patch"],
    "padim": ["method=padim", "~coreset.ratio", "~patch"],
    "ensemble": [ENSEMBLE],
    "bf16": ["trainer.precision=bf16-mixed"],
}


@pytest.mark.parametrize("name", METHODS)
def test_the_model_of_a_run_scores_as_its_test_did(root: Path, tmp_path: Path, name: str) -> None:
    done = run(root, tmp_path, "artifact=true", *METHODS[name])
    assert done.code == 0, done.err
    paths, expected = zip(*rows(tmp_path / "run"), strict=True)
    assert scored(tmp_path / "run/artifact", paths) == pytest.approx(expected, rel=1e-6)


NEW_PROCESS = """
import json, sys
def refuse(event, args):
    if event.startswith("socket."):
        raise RuntimeError(event)
sys.addaudithook(refuse)
import numpy, torch
import patchcore
inspector = patchcore.load(sys.argv[1])
images = numpy.load(sys.argv[2])
prepared = numpy.stack([inspector.prepare(image) for image in images])
print(json.dumps(inspector.score(torch.from_numpy(prepared)).score.tolist()))
"""


def test_a_model_inspects_elsewhere_without_data_or_network(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data", (40, 36))
    settings = config(tmp_path / "data", artifact=ArtifactConfig(Keep.all, weights=True))
    runner.run(settings, tmp_path / "run")
    paths, expected = zip(*rows(tmp_path / "run"), strict=True)
    np.save(tmp_path / "images.npy", np.stack([read_image(path) for path in paths]))
    shutil.move(tmp_path / "run/artifact", tmp_path / "elsewhere")
    for folder in ("data", "run"):
        shutil.rmtree(tmp_path / folder)
    told = execute(NEW_PROCESS, "elsewhere", "images.npy", folder=tmp_path)
    assert json.loads(told) == pytest.approx(expected, rel=1e-6)


def test_predict_explains_by_the_artifact_alone(tmp_path: Path) -> None:
    """Findings stand beside nominal patches of images that are gone."""
    write_mvtec(tmp_path / "data", (40, 36))
    options = ("artifact=true", "artifact.weights=true", "artifact.crops=true")
    done = run(tmp_path / "data", tmp_path, *options)
    assert done.code == 0, done.err
    paths, expected = zip(*rows(tmp_path / "run"), strict=True)
    shutil.move(paths[0], tmp_path / "part.png")
    shutil.rmtree(tmp_path / "data")
    artifact, folder = tmp_path / "run/artifact", tmp_path / "drawn"
    found = patchcore(
        *("predict", str(artifact), str(tmp_path / "part.png"), "--format=jsonl", "--explain"),
        *("--overlays", f"--folder={folder}", "--pixel-threshold=0"),
    )
    assert found.code == 0, found.err
    record = json.loads(found.out)
    assert record["score"] == pytest.approx(expected[0], rel=1e-5)
    nominal = sorted(tmp_path / f"data/nut/train/good/00{i}.png" for i in range(4))
    assert Path(record["regions"][0]["nearest"]["image"]) in nominal
    inspector = load(artifact)
    assert inspector.crops is not None and len(inspector.crops) == inspector.model.memory_patches
    with Image.open(record["overlay"]) as picture:
        assert picture.size > (40, 36)


def test_an_artifact_tells_of_its_run(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "artifact=true").code == 0
    folder = tmp_path / "run"
    details = load(folder / "artifact").details
    assert details["metrics"] == json.loads((folder / "metrics.json").read_text())
    data = details["data"]
    assert (data["set"], data["settings"]["category"]) == ("mvtec", "nut")
    assert (data["train_images"], data["test_images"]) == (4, 5)
    paths = sorted((root / "nut/train/good").iterdir())
    assert details["sources"] == [str(path) for path in paths]
    assert details["source_digests"] == [file_digest(path) for path in paths]
    (fit,) = details["lineage"]
    assert fit["fingerprint"] == (folder / "fingerprint.txt").read_text().strip()
    assert {"artifact/artifact.yaml", "artifact/model.safetensors"} < set(listed(folder))


def test_digests_of_images_are_those_that_the_run_read(tmp_path: Path) -> None:
    split = MVTecConfig(root=str(write_mvtec(tmp_path).parent), category="nut").read().recorded()
    paths = [sample.path for sample in split.train]
    digests = [file_digest(path) for path in paths]
    write_image(paths[0], (50, 50), 99)
    paths[1].unlink()
    assert _images(split) == {"sources": list(map(str, paths)), "source_digests": digests}


def test_a_finished_run_is_made_again_only_for_an_artifact_that_it_lacks(
    root: Path, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "run", CacheConfig(enabled=True, root=str(tmp_path / "cache"))
    kept, inside = ArtifactConfig(Keep.all), ArtifactConfig(Keep.all, weights=True)

    def again(artifact: ArtifactConfig, to: Path = folder, **more: Any) -> list[str]:
        """Content of the artifact, once the run was asked for again."""
        runner.run(config(root, cache=cache, resume=True, artifact=artifact, **more), to)
        assert rows(to) == scores
        assert (to / "fingerprint.txt").read_text() == fingerprint
        return sorted(path.name for path in to.glob("artifact/*"))

    runner.run(config(root, cache=cache), folder)
    scores, fingerprint = rows(folder), (folder / "fingerprint.txt").read_text()
    files = ["artifact.yaml", "model.safetensors"]
    assert again(kept) == files
    assert json.loads((folder / "provenance.json").read_text())["warm"]  # from the cache
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        assert again(kept) == files
        assert again(ArtifactConfig()) == files  # nothing is lost
    assert again(ArtifactConfig(), figures=True) == files  # computed again, for pictures
    files.append("weights.safetensors")
    assert again(inside) == files
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        assert again(kept) == files
        assert again(kept, tmp_path / "other") == files
    expected = [score for _, score in scores]
    paths = [path for path, _ in scores]
    assert scored(tmp_path / "other/artifact", paths) == pytest.approx(expected, rel=1e-6)
    shutil.copytree(folder / "artifact", tmp_path / "as it was")
    grow(folder / "artifact", paths[0])
    shutil.rmtree(tmp_path / "other")
    with pytest.warns(UserWarning, match=r"artifact: was extended; the run is made again"):
        assert again(kept, tmp_path / "other") == files[:2]
    assert scored(tmp_path / "other/artifact", paths) == pytest.approx(expected, rel=1e-6)
    shutil.rmtree(tmp_path / "other")
    shutil.rmtree(folder / "artifact")
    shutil.move(tmp_path / "as it was", folder / "artifact")
    (folder / "artifact/model.safetensors").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"model\.safetensors: is damaged: [^:]*; the run is made again"
    ):
        assert again(inside) == files
    assert scored(folder / "artifact", paths) == pytest.approx(expected, rel=1e-6)


def test_damage_is_told_once_whether_or_not_a_model_is_wanted(root: Path, tmp_path: Path) -> None:
    asked = config(root, resume=True, artifact=ArtifactConfig(Keep.all))
    for name in ("sound", "damaged"):
        runner.run(asked, tmp_path / name)
    (tmp_path / "damaged/scores.csv").write_text("")
    with pytest.warns(UserWarning) as told:
        runner.run(asked, tmp_path / "damaged")
    (only,) = [str(one.message) for one in told if "damaged" in str(one.message)]
    assert only.endswith(f"; {tmp_path / 'sound'} has the same results")


def test_a_run_that_was_copied_without_hidden_files_is_finished(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "artifact=true", name="first").code == 0
    shutil.copytree(tmp_path / "first", tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    model = read_files(tmp_path / "copy/artifact")
    done = run(root, tmp_path, "artifact=true", "resume=true", name="copy")  # another config.yaml
    assert done.code == 0 and f"finished before, in {tmp_path / 'copy'}\n" in done.out, done.err
    assert read_files(tmp_path / "copy/artifact") == model
    assert {f"artifact/{name}" for name in model} <= {*listed(tmp_path / "copy")}


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_extended_model_stays_where_its_run_is_asked_for_again(
    root: Path, tmp_path: Path
) -> None:
    kept, folder = ArtifactConfig(Keep.all), tmp_path / "run"
    settings = partial(config, root, cache=CacheConfig(root=str(tmp_path / "cache")), resume=True)
    names = (tmp_path / f"other-{number}" for number in count())
    same = next(name for name in names if digest(name) > digest(folder))  # so it is found later
    for place in (folder, same):
        runner.run(settings(artifact=kept), place)
    grown = grow(folder / "artifact", rows(folder)[0][0])

    def again(to: Path = folder, said: dict[str, Any] | None = None, **more: Any) -> None:
        runner.run(settings(**{"artifact": kept, **more}), to, settings=said)
        assert (folder / "artifact/artifact.yaml").read_bytes() == grown
        assert len(load(folder / "artifact").details["lineage"]) == 2

    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        again()
        again(said={"logger": {}})  # config.yaml alone is written anew
        again(artifact=ArtifactConfig())
        told = f"artifact: was extended; {same} has the same results"
        with pytest.warns(UserWarning, match=told):
            again(tmp_path / "third")
        assert len(load(tmp_path / "third/artifact").details["lineage"]) == 1
        told = f"^{folder}/artifact: was extended, and this run would replace it: move it"
        other = {"coreset": GreedyConfig(ratio=0.3)}
        for more in (other, {"resume": False}, {**other, "artifact": ArtifactConfig()}):
            with pytest.raises(InputError, match=told):
                again(**more)
            again()
    again(artifact=ArtifactConfig(), resume=False)  # computed again, and the model is kept


@pytest.mark.parametrize("extended", [False, True])
def test_a_model_of_another_run_is_never_described_as_that_of_its_folder(
    root: Path, tmp_path: Path, extended: bool
) -> None:
    kept, folder = ArtifactConfig(Keep.all), tmp_path / "run"
    settings = partial(config, root, cache=CacheConfig(root=str(tmp_path / "cache")), resume=True)
    other = {"coreset": GreedyConfig(ratio=0.3)}
    runner.run(settings(artifact=kept), folder)
    runner.run(settings(artifact=kept, **other), tmp_path / "other")
    shutil.rmtree(folder / "artifact")
    shutil.copytree(tmp_path / "other/artifact", folder / "artifact")
    if extended:
        grow(folder / "artifact", rows(folder)[0][0])
    before = read_files(folder / "artifact")
    told = f"^{folder}/artifact: is the model of another run, and this run would replace it: move"
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        for more in ({}, {"resume": False}, other, {**other, "artifact": ArtifactConfig()}):
            with pytest.raises(InputError, match=told):
                runner.run(settings(**{"artifact": kept, **more}), folder)
        runner.run(settings(), folder)  # no model is asked for
    assert read_files(folder / "artifact") == before
    told = f"{folder}/artifact: is the model of another run; the run is made again"
    with pytest.warns(UserWarning, match=told):
        runner.run(settings(artifact=kept), tmp_path / "third")
    (fit,) = load(tmp_path / "third/artifact").details["lineage"]
    assert fit["fingerprint"] == (folder / "fingerprint.txt").read_text().strip()


def test_a_model_of_another_run_stays_where_results_are_gone(root: Path, tmp_path: Path) -> None:
    kept, folder = ArtifactConfig(Keep.all), tmp_path / "run"
    other = {"coreset": GreedyConfig(ratio=0.3)}
    runner.run(config(root, artifact=kept), folder)
    runner.run(config(root, artifact=kept, **other), tmp_path / "other")
    (folder / "metrics.json").unlink()
    shutil.copytree(folder, tmp_path / "own")
    shutil.rmtree(folder / "artifact")
    shutil.copytree(tmp_path / "other/artifact", folder / "artifact")
    before = read_files(folder / "artifact")
    for more in ({"artifact": kept}, {"artifact": kept, **other}, {}):
        with pytest.raises(InputError, match=f"^{folder}/artifact: is the model of another run"):
            runner.run(config(root, **more), folder)
    assert read_files(folder / "artifact") == before
    runner.run(config(root, artifact=kept, **other), tmp_path / "own")  # its own is replaced


def test_a_model_that_is_replaced_by_another_during_a_run_stays(root: Path, tmp_path: Path) -> None:
    settings, folder = config(root, artifact=ArtifactConfig(Keep.all)), tmp_path / "run"
    runner.run(settings, folder)
    other = config(root, artifact=settings.artifact, coreset=GreedyConfig(ratio=0.3))
    runner.run(other, tmp_path / "other")

    def meanwhile(*args: Any) -> None:
        shutil.rmtree(folder / "artifact")
        shutil.copytree(tmp_path / "other/artifact", folder / "artifact")
        write_artifact(*args)

    with (
        mock.patch("patchcore.runner.write_artifact", meanwhile),
        pytest.raises(InputError, match="artifact: is the model of another run, and this run"),
    ):
        runner.run(settings, folder)
    assert read_files(folder / "artifact") == read_files(tmp_path / "other/artifact")


def test_a_model_that_is_extended_during_a_run_is_not_replaced(root: Path, tmp_path: Path) -> None:
    settings = config(root, artifact=ArtifactConfig(Keep.all))
    runner.run(settings, tmp_path / "run")
    found = []

    def meanwhile(*args: Any) -> None:
        found.append(grow(tmp_path / "run/artifact", rows(tmp_path / "run")[0][0]))
        write_artifact(*args)

    with (
        mock.patch("patchcore.runner.write_artifact", meanwhile),
        pytest.raises(InputError, match="artifact: was extended, and this run would replace it"),
    ):
        runner.run(settings, tmp_path / "run")
    assert [(tmp_path / "run/artifact/artifact.yaml").read_bytes()] == found


@pytest.mark.parametrize("name", ["artifact/artifact.yaml", "distrusted.csv"])
def test_files_in_the_place_of_results_are_refused_at_once(
    root: Path, tmp_path: Path, name: str
) -> None:
    method = PatchCoreConfig(pruning=3)
    runner.run(config(root), tmp_path)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with (
        mock.patch.object(Detector, "learn", side_effect=AssertionError("computed")),
        pytest.raises(InputError, match=f"^{file}: would be replaced, but is not of a run"),
    ):
        runner.run(config(root, method=method, artifact=ArtifactConfig(Keep.all)), tmp_path)
    runner.run(config(root), tmp_path)  # which replaces none of them
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["patchcore", "ensemble", "pruning"])
def test_a_model_that_is_taken_over_knows_the_images_of_the_present_run(
    tmp_path: Path, name: str
) -> None:
    """The description is that of the model which the run would have made, but for times."""
    write_mvtec(tmp_path / "x1", (40, 36))
    shutil.copytree(tmp_path / "x1", tmp_path / "x2")
    options = {**METHODS, "pruning": ["method.pruning=1"]}[name]
    options = [*options, "resume=true", "artifact=true", "artifact.crops=true"]
    more = ["image.limit=1000000"]
    for to, root, own in (
        ("first", "x1", []),
        ("taken", "x2", more),
        ("made", "x2", [*more, "resume=false"]),
    ):
        given = {each.partition("=")[0] for each in own}
        kept = [each for each in options if each.partition("=")[0] not in given]
        done = run(tmp_path / root, tmp_path, *kept, *own, name=to)
        assert done.code == 0, done.err
        assert ("finished before" in done.out) == (to == "taken")
        for file in (tmp_path / to / "artifact").iterdir():
            assert file.stat().st_mode & stat.S_IWUSR  # a copy of protected files is not protected
            file.chmod(0o444)
    shutil.rmtree(tmp_path / "x1")
    found = [described(tmp_path / to) for to in ("taken", "made")]
    assert found[0] == found[1]
    assert str(tmp_path / "x1") not in str(found[0])
    inspector = load(tmp_path / "taken/artifact")
    sources = [path for path in inspector.details["sources"] if path is not None]
    assert (len(sources) < 4) == (name == "pruning")
    assert (len(inspector.details.get("pruned", ())) > 0) == (name == "pruning")
    with pytest.raises(InputError, match="are in the model already"):
        extend(inspector, [Path(path) for path in sources])
    if name != "ensemble":  # whose members take images of two sizes
        told = patchcore("test", str(tmp_path / "taken/artifact"))
        assert told.code == 0, told.err


def described(run: Path) -> dict[str, Any]:
    """Contents of a run's artifact.yaml, without metrics and times."""
    found = yaml.safe_load((run / "artifact/artifact.yaml").read_text())
    del found["metrics"], found["lineage"][0]["time"]
    return dict(found)


def test_a_run_that_fails_keeps_the_earlier_artifact(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "artifact=true").code == 0
    before = (tmp_path / "run/artifact/artifact.yaml").read_bytes()
    with (
        mock.patch("patchcore.artifact_files.save_file", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run(root, tmp_path, "artifact=true", "seed=1")
    assert (tmp_path / "run/artifact/artifact.yaml").read_bytes() == before
    load(tmp_path / "run/artifact")


# --- as it is typed ---------------------------------------------------------------------------


def test_artifact_is_typed_as_people_guess() -> None:
    typed = {
        "artifact=true": "artifact.keep=all",
        "artifact=True": "artifact.keep=all",
        "artifact=false": "artifact.keep=none",
        "artifact=best": "artifact.keep=best",
        "artifact=all": "artifact.keep=all",
        "artifact.weights=true": "artifact.weights=true",
    }
    assert as_typed(list(typed)) == list(typed.values())


def test_mistakes_are_told(root: Path, tmp_path: Path) -> None:
    for typed, told in (
        (["artifact=yes"], "artifact=yes: there is no such choice; there are true (all), false"),
        (
            ["artifact=true", "data.regions=x"],
            "artifact: a saved model cannot know the data.regions",
        ),
        (["artifact.weights=true"], "artifact.weights has no effect on its own: add"),
    ):
        done = run(root, tmp_path, *typed)
        assert done.code == 1
        assert done.err.count("error: ") == 1 and told in done.err


# --- multiruns --------------------------------------------------------------------------------


def values(folder: Path, key: str) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())[key]
        for path in sorted(folder.glob("*/metrics.json"))
    }


def best(root: Path, cache: Path, ratio: float, keep: Keep = Keep.best) -> Config:
    """Settings of a point that is the better the smaller its memory is."""
    return config(
        root,
        coreset=GreedyConfig(ratio=ratio),
        cache=CacheConfig(enabled=True, root=str(cache)),
        objectives=[Objective.memory_patches],
        artifact=ArtifactConfig(keep),
        resume=True,
    )


def test_the_best_point_alone_keeps_its_model(root: Path, tmp_path: Path) -> None:
    sweep = ["--multirun", "coreset.ratio=0.2,0.1,0.3", "objectives=[memory_patches]"]
    done = run(root, tmp_path, *sweep, "artifact=best", name="sweep")
    assert done.code == 0, done.err
    patches = values(tmp_path / "sweep", "memory_patches")
    assert min(patches, key=lambda point: patches[point]) == "1"
    kept = tmp_path / "sweep/1/artifact"
    assert [*(tmp_path / "sweep").rglob("artifact.yaml")] == [kept / "artifact.yaml"]
    assert done.out.count("artifact of the best point:") == 1
    assert f"artifact of the best point: {kept}" in done.out
    paths, expected = zip(*rows(tmp_path / "sweep/1"), strict=True)
    assert scored(kept, paths) == pytest.approx(expected, rel=1e-6)


def test_points_that_work_in_their_own_folders_find_that_of_their_multirun(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["hydra.job.chdir=true", "hydra.sweep.dir=sweep", "objectives=[memory_patches]"]
    given = ["--multirun", "coreset.ratio=0.2,0.1", "artifact=best", *more]
    done = run(root, tmp_path, *given, name="unused")
    assert done.code == 0 and "artifact of the best point: sweep/1/artifact" in done.out, done.err
    assert holders(tmp_path / "sweep") == [tmp_path / "sweep/1"]


@pytest.mark.parametrize("text", ["{", "artifact: 5", "a: !!python/none", "- 1", "\x00", ""])
def test_settings_of_a_point_that_cannot_be_read_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert _setting(tmp_path, "artifact", "keep") is None
    (tmp_path / "config.yaml").write_text("artifact: {keep: best}")
    assert _setting(tmp_path, "artifact", "keep") == "best"
    (tmp_path / "config.yaml").unlink()
    assert _setting(tmp_path, "artifact") is None


POINT = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from patchcore import runner
from tests.test_keeping import best
root, sweep, number, ratio = sys.argv[1:]
runner.run(best(Path(root), Path("cache"), float(ratio)), f"{sweep}/{number}", multirun=Path(sweep))
"""


def test_points_in_several_processes_keep_one_model(root: Path, tmp_path: Path) -> None:
    """Any of them may end first."""

    def point(number: int, ratio: float) -> None:
        folder = tmp_path / f"process_{number}"
        folder.mkdir()
        execute(POINT, str(root), str(tmp_path / "sweep"), f"{number}", f"{ratio}", folder=folder)

    with ThreadPoolExecutor() as pool:
        list(pool.map(point, range(2), (0.2, 0.1)))
    assert holders(tmp_path / "sweep") == [tmp_path / "sweep/1"]


def test_a_multirun_goes_on_with_the_best(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"

    def sweep(*ratios: float, keep: Keep = Keep.best, to: Path = folder) -> list[Path]:
        for number, ratio in enumerate(ratios):
            point = best(root, tmp_path / "cache", ratio, keep)
            runner.run(point, to / str(number), multirun=to)
        return holders(to)

    assert sweep(0.2, 0.1, 0.3, keep=Keep.none) == []
    assert sweep(0.2, 0.1, 0.3) == [folder / "1"]
    before = (folder / "1/artifact/artifact.yaml").read_bytes()
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        assert sweep(0.2, 0.1, 0.3) == [folder / "1"]
    assert (folder / "1/artifact/artifact.yaml").read_bytes() == before
    # A later point that is better takes its place; a new folder gets what was kept.
    assert sweep(0.2, 0.1, 0.3, 0.05) == [folder / "3"]
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        assert sweep(0.05, to=tmp_path / "new") == [tmp_path / "new/0"]


def test_a_multirun_that_is_typed_again_keeps_a_model_that_was_extended(
    root: Path, tmp_path: Path
) -> None:
    point = partial(best, root, tmp_path / "cache")
    runner.run(point(0.2), tmp_path / "0", multirun=tmp_path)
    grown = grow(tmp_path / "0/artifact", rows(tmp_path / "0")[0][0])
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        runner.run(point(0.2), tmp_path / "0", multirun=tmp_path)
    runner.run(point(0.1), tmp_path / "1", multirun=tmp_path)  # better
    assert holders(tmp_path) == [tmp_path / "0", tmp_path / "1"]
    assert (tmp_path / "0/artifact/artifact.yaml").read_bytes() == grown


def test_models_saved_on_request_stay_when_the_best_is_asked_for(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the best is called so, and what else is kept is told with the reason."""
    folder, ratios = tmp_path / "sweep", (0.2, 0.1, 0.3, 0.05)

    def sweep(keep: Keep, count: int) -> list[str]:
        for number, ratio in enumerate(ratios[:count]):
            point = best(root, tmp_path / "cache", ratio, keep)
            runner.run(point, folder / str(number), multirun=folder)
        _tell_best(Multirun(folder, 0.0, "", False, ("", ""), {}))
        return capsys.readouterr().out.splitlines()

    assert sweep(Keep.all, 3) == []
    grow(folder / "0/artifact", rows(folder / "0")[0][0])
    for points, first in ((3, 1), (4, 3), (4, 3)):
        kept = [f"kept besides: {folder}/{n}/artifact: it was saved by artifact=true" for n in "12"]
        kept.insert(1, f"kept besides: {folder}/0/artifact: it was changed after its run")
        told = [f"artifact of the best point: {folder}/{first}/artifact", *kept[first == 1 :]]
        assert sweep(Keep.best, points) == told
    artifacts = sorted(mark.parents[1].name for mark in folder.rglob("artifact.yaml"))
    assert artifacts == ["0", "1", "2", "3"]


def test_a_multirun_without_a_best_point_says_that_it_keeps_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        settings = {"artifact.keep": "best", "objectives": ["pixel_auroc"], "seed": number}
        write_run(tmp_path / str(number), settings, {"image_auroc": 0.9})
        (tmp_path / f"{number}/.hydra").mkdir()
        (tmp_path / f"{number}/.hydra/overrides.yaml").write_text(f"- seed={number}\n")
    _tell_best(Multirun(tmp_path, 0.0, "", False, ("", ""), {}))
    assert capsys.readouterr().out == (
        "artifact=best: no model is kept, because no point has a value of pixel_auroc\n"
    )


def test_one_run_alone_is_the_best(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "artifact=best").code == 0
    load(tmp_path / "run/artifact")


def finished(folder: Path, name: str, artifact: bool, **record: Any) -> Path:
    """A point's folder with these metrics, of the multirun in `folder`."""
    point = folder / name
    (point / "artifact").mkdir(parents=True)
    (point / "metrics.json").write_text(json.dumps({"seconds": {"fit": 1.0}, **record}))
    keeper = Keeper(ArtifactConfig(Keep.best), Objective["image_auroc"], point, folder)
    provenance = keeper.noted({"warm": record.get("warm", [])})
    (point / "provenance.json").write_text(json.dumps(provenance))
    if artifact:
        shutil.rmtree(point / "artifact")
        write_folder(point / "artifact", {"lineage": [{"step": "fit"}]}, {})
    return point


def test_the_better_value_wins_and_the_earlier_point(tmp_path: Path) -> None:
    high = Contest(tmp_path, Objective["image_auroc"])
    low = Contest(tmp_path, Objective["memory_patches"])
    for name, auroc, patches in (("2", 0.9, 30), ("10", 0.9, 20), ("3", 0.8, 20)):
        finished(tmp_path, name, True, image_auroc=auroc, memory_patches=patches)
    finished(tmp_path, "1", False, image_auroc=1.0, memory_patches=1)  # it had to keep nothing
    finished(tmp_path, "5/.unfinished", True, image_auroc=1.0, memory_patches=1)
    assert [point.name for point in high.holders()] == ["2", "3", "10"]

    def won(contest: Contest, name: str, **record: Any) -> bool:
        return contest.won(tmp_path / name, {"seconds": {}, **record}, [])

    assert won(high, "4", image_auroc=0.95)
    assert not won(high, "4", image_auroc=0.9)
    assert won(high, "0", image_auroc=0.9)
    assert not won(high, "0", image_auroc=None)
    assert won(high, "2", image_auroc=0.9)  # already has it
    assert won(low, "4", memory_patches=19)
    assert not won(low, "4", memory_patches=20)
    assert won(low, "2", memory_patches=20)
    low.settle()
    assert [point.name for point in high.holders()] == ["3"]
    assert not (tmp_path / "10/artifact").exists() and (tmp_path / "10/metrics.json").exists()
    assert (tmp_path / "5/.unfinished/artifact/artifact.yaml").exists()


def test_what_is_undefined_or_cannot_be_read_loses(tmp_path: Path) -> None:
    contest = Contest(tmp_path, Objective["image_auroc"])
    finished(tmp_path, "0", True, image_auroc=None)
    damaged = finished(tmp_path, "1", True, image_auroc=1.0)
    (damaged / "metrics.json").write_text("{")
    assert contest.won(tmp_path / "2", {"seconds": {}, "image_auroc": 0.1}, [])
    finished(tmp_path, "2", True, image_auroc=0.1)
    contest.settle()
    assert holders(tmp_path) == [tmp_path / "2"]
    # Seconds that came from the cache are no costs.
    seconds = Contest(tmp_path / "none", Objective["seconds"])
    record = {"seconds": {"fit": 1.0}}
    assert seconds.won(tmp_path / "3", record, [])
    assert not seconds.won(tmp_path / "3", record, ["fit"])


def test_write_protected_models_of_worse_points_go_too() -> None:
    with plain_user() as folder:
        for name, auroc in (("0", 0.9), ("1", 0.8)):
            protect(finished(folder, name, True, image_auroc=auroc) / "artifact")
        Contest(folder, Objective["image_auroc"]).settle()
        assert [*folder.glob("*/artifact")] == [folder / "0/artifact"]
        assert holders(folder) == [folder / "0"]


def test_models_that_are_not_of_the_multirun_stay(root: Path, tmp_path: Path) -> None:
    """Other runs may be in its folder: `hydra.sweep.dir` may be any."""
    contest = Contest(tmp_path, Objective["image_auroc"])
    best = finished(tmp_path, "0", True, image_auroc=0.9)
    worse = finished(tmp_path, "1", True, image_auroc=0.8)
    finished(tmp_path, "deep/er/2", True, image_auroc=0.7)  # hydra.sweep.subdir may have slashes
    extended = finished(tmp_path, "3", True, image_auroc=0.6)
    steps = [{"step": "fit"}, {"step": "extend"}]
    write_folder(extended / "artifact", {"lineage": steps}, {})
    unreadable = finished(tmp_path, "4", True, image_auroc=0.6)
    (unreadable / "artifact/artifact.yaml").write_text("")
    foreign = finished(tmp_path, "6", True, image_auroc=0.6)
    (foreign / "fingerprint.txt").write_text("a1\n")
    write_folder(foreign / "artifact", {"lineage": [{"step": "fit", "fingerprint": "b2"}]}, {})
    alone = finished(tmp_path, "alone", True, image_auroc=1.0)
    (alone / "provenance.json").write_text(json.dumps({"warm": []}))
    other = finished(tmp_path / "other", "0", True, image_auroc=1.0)
    copied = shutil.copytree(worse, tmp_path / "copied")
    moved = shutil.copytree(tmp_path / "other", tmp_path / "moved") / "0"
    assert contest.won(tmp_path / "5", {"seconds": {}, "image_auroc": 0.95}, [])
    contest.settle()
    left = [mark.parents[1] for mark in tmp_path.rglob("artifact/artifact.yaml")]
    assert set(left) == {best, extended, unreadable, foreign, alone, other, copied, moved}
    assert stays(foreign) == "it is the model of another run"


def test_a_multirun_beside_other_runs_deletes_none_of_their_models(
    root: Path, tmp_path: Path
) -> None:
    for name, ratio in (("alone", 0.1), ("earlier/0", 0.15)):
        multirun = tmp_path / "earlier" if "/" in name else None
        runner.run(best(root, tmp_path / "cache", ratio), tmp_path / name, multirun=multirun)
    sweep = ["--multirun", "coreset.ratio=0.3,0.2", "objectives=[memory_patches]"]
    done = run(root, tmp_path, *sweep, "artifact=best", name="")
    assert done.code == 0, done.err
    left = sorted(mark.parents[1] for mark in tmp_path.rglob("artifact/artifact.yaml"))
    assert left == [tmp_path / name for name in ("1", "alone", "earlier/0")]


def test_a_point_of_an_earlier_version_is_known_once_it_is_resumed(
    root: Path, tmp_path: Path
) -> None:
    point = best(root, tmp_path / "cache", 0.2)
    runner.run(point, tmp_path / "0", multirun=tmp_path)
    file = tmp_path / "0/provenance.json"
    told = file.read_text()
    file.write_text(json.dumps({k: v for k, v in json.loads(told).items() if k != POINT_OF}))
    (tmp_path / "0/.checksums").unlink()
    assert holders(tmp_path) == []
    with mock.patch.object(Detector, "learn", side_effect=AssertionError("computed again")):
        runner.run(point, tmp_path / "0", multirun=tmp_path)
        assert holders(tmp_path) == [tmp_path / "0"]
        assert json.loads(file.read_text()) == json.loads(told)
        runner.run(point, tmp_path / "0")  # a run alone contends with none
    assert holders(tmp_path) == []


def test_who_keeps_what() -> None:
    record = {"seconds": {}, "image_auroc": None}
    for keep, multirun, expected in (
        (Keep.none, None, False),
        (Keep.all, None, True),
        (Keep.all, Path("sweep"), True),
        (Keep.best, None, True),
        (Keep.best, Path("sweep"), False),
    ):
        keeper = Keeper(ArtifactConfig(keep), Objective["image_auroc"], Path("run"), multirun)
        assert keeper.wants(record, []) == expected
    assert ArtifactConfig(Keep.all).files(2) == ["artifact/artifact.yaml"]
    one, two = (ArtifactConfig(Keep.all, weights=True).files(number)[1:] for number in (1, 2))
    assert one == ["artifact/weights.safetensors"]
    assert ArtifactConfig(Keep.all, crops=True).files(1)[1:] == ["artifact/crops.safetensors"]
    with pytest.raises(InputError, match=r"artifact\.crops has no effect on its own"):
        ArtifactConfig(crops=True)
    assert two == ["artifact/weights_1.safetensors", "artifact/weights_2.safetensors"]
    with pytest.raises(InputError, match=r"artifact\.weights has no effect on its own"):
        ArtifactConfig(weights=True)


def test_config_yaml_says_what_was_asked(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "artifact=best").code == 0
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["artifact"] == {"keep": "best", "weights": False, "crops": False}
