"""Data that changes while a run is under way, and seconds that a cache has saved."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from patchcore.cache import Store
from patchcore.commands.train import objectives
from patchcore.config import Objective
from patchcore.data.files import Files
from patchcore.data.images import decode_pair
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.sample import Split
from patchcore.digests import ChangedError, Snapshot
from patchcore.errors import InputError
from patchcore.identity import samples_digest
from patchcore.report.table import read_runs
from patchcore.resume import read_provenance
from tests.images import write_image, write_mask, write_mvtec
from tests.runs import TINY, Outcome, patchcore

pytestmark = pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
CHANGED = "the file changed while the run was under way"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mvtec(tmp_path / "data", (40, 36))
    return tmp_path


def train(root: Path, name: str, *overrides: str) -> Outcome:
    common = ["logger=none", "data=mvtec", f"data.root={root}/data", "data.category=nut"]
    common += ["data.batch_size=2", "trainer.enable_progress_bar=false"]
    place = [f"cache.root={root}/cache", f"hydra.run.dir={root}/{name}"]
    return patchcore("train", *TINY, *common, *place, *overrides)


def results(folder: Path) -> tuple[dict[str, Any], str]:
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["seconds"]
    return metrics, (folder / "scores.csv").read_text()


def test_images_that_arrive_while_a_run_starts_shift_nothing(root: Path) -> None:
    assert train(root, "before", "figures=false").code == 0
    real = MVTecConfig._read

    def read(config: MVTecConfig, files: Files) -> Split:
        split = real(config, files)
        write_image(root / "data/nut/test/good/0000_new.png", (40, 36), 77)
        write_image(root / "data/nut/train/good/0000_new.png", (40, 36), 78)
        return split

    with mock.patch.object(MVTecConfig, "_read", autospec=True, side_effect=read) as reads:
        done = train(root, "during")  # with figures, which open images once more
    assert done.code == 0, done.err
    assert reads.call_count == 1
    assert results(root / "during") == results(root / "before")
    first = read_provenance(root / "before")["data"]
    assert read_provenance(root / "during")["data"] == first
    now = MVTecConfig(root=f"{root}/data", category="nut").read()
    assert samples_digest(now.test, now) != first["test"]


def test_a_changed_file_is_named_whatever_its_name_holds() -> None:
    error = ChangedError.of(Path("/data/a, b: c/7.png"))
    again = pickle.loads(pickle.dumps(error))  # as a loader process sends it
    assert again.path == error.path and str(again) == str(error)
    assert str(error).startswith("/data/a, b: c/7.png: the file changed while")


def test_numbers_of_changed_files_are_never_kept(root: Path) -> None:
    options = ["figures=false", "resume=true"]
    assert train(root, "right", *options).code == 0
    first = root / "data/nut/train/good/000.png"

    def put_back_at_once(path: Path, mask: Path | None, *options: Any) -> Any:
        if mask is None:
            return decode_pair(path, mask, *options)
        content = mask.read_bytes()
        write_mask(mask, (40, 36), marked=False)
        found = decode_pair(path, mask, *options)
        mask.write_bytes(content)  # before anybody looks
        return found

    def changed_when_it_has_been_used(path: Path, mask: Path | None, *options: Any) -> Any:
        if mask is not None:
            write_image(first, (40, 36), 99)
        return decode_pair(path, mask, *options)

    def run(name: str, reader: Callable[..., Any]) -> Outcome:
        decoded = mock.patch("patchcore.data.dataset.decode_pair", reader)
        with decoded, pytest.warns(UserWarning, match=f"{CHANGED}; started again with the files"):
            return train(root, name, *options, "patch.size=1")

    done = run("wrong", put_back_at_once)  # whenever it is read
    assert done.code == 1 and CHANGED in done.err, done.err
    assert done.err.startswith(f"error: {root}/data/nut/ground_truth/scratch/")
    assert not (root / "wrong/metrics.json").exists()
    assert run("late", changed_when_it_has_been_used).code == 0  # once; then it stays
    data = read_provenance(root / "late")["data"]
    assert data["train"] != read_provenance(root / "right")["data"]["train"]
    write_image(first, (40, 36), 0)  # as it was
    done = train(root, "again", *options, "seed=1", "coreset.seed=0")
    assert done.code == 0 and "finished before" in done.out  # the right numbers, no others
    assert results(root / "again") == results(root / "right")
    computed = mock.patch("patchcore.runner.train", side_effect=AssertionError)
    with computed, pytest.raises(AssertionError):  # nothing that was wrong is remembered
        train(root, "other", *options, "patch.size=1")


def test_only_contents_decide_whether_a_file_has_changed(tmp_path: Path) -> None:
    a, b = (write_image(tmp_path / f"{name}.png", seed=i) for i, name in enumerate("ab"))
    content = a.read_bytes()
    snapshot = Snapshot.of([a, b, a])
    assert snapshot.read([a, b], a.read_bytes) == content
    os.utime(a, (5, 5))
    b.write_bytes(b.read_bytes())
    assert snapshot.read([a, b], a.read_bytes) == content
    snapshot.check()
    a.write_bytes(content[:-1] + b"x")  # of the same size
    os.utime(a, (5, 5))  # and time
    for look in (snapshot.check, lambda: snapshot.read([b, a], a.read_bytes)):
        with pytest.raises(InputError, match=f"^{a}: {CHANGED}.*run it again"):
            look()
    assert snapshot.read([b], b.read_bytes)
    a.unlink()
    snapshot.check()  # what was made of it was made of the right contents
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        snapshot.read([a], a.read_bytes)
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        Snapshot.of([a])


def test_a_file_that_settles_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    content = path.read_bytes()
    snapshot = Snapshot.of([path])
    reads = []

    def read() -> bytes:
        if not reads:
            path.write_bytes(content)  # somebody else, during the first read
        reads.append(path.read_bytes())
        return reads[-1]

    assert snapshot.read([path], read) == content and len(reads) == 2


# --- costs -----------------------------------------------------------------------------------


def test_costs_do_not_depend_on_which_point_came_first(root: Path) -> None:
    on = ["cache.enabled=true", "figures=false"]
    for name, size in (("cold", 3), ("other_patch", 1), ("same", 3)):
        assert train(root, name, *on, f"patch.size={size}").code == 0
    names = ("cold", "other_patch", "same")
    warm = {name: read_provenance(root / name)["warm"] for name in names}
    assert warm["cold"] == []
    assert warm["other_patch"] == ["extract", "score"]
    assert warm["same"] == ["coreset", "extract", "score"]
    wanted = [Objective.image_auroc, Objective.seconds, Objective.score_seconds]
    records = {name: json.loads((root / name / "metrics.json").read_text()) for name in names}
    costs = {name: read_provenance(root / name)["costs"] for name in names}
    kept = [f"{stage}.{part}" for stage in ("extract", "score") for part in ("decode", "network")]
    for part in kept:
        first = costs["cold"][part]
        assert first["seconds"] > 0 and not first["cached"]
        for name in ("other_patch", "same"):
            assert costs[name][part]["cached"]
            assert costs[name][part]["seconds"] == pytest.approx(first["seconds"])
    assert [costs[name]["coreset"]["cached"] for name in names] == [False, False, True]
    own = {*kept, "coreset", "extract.patches", "score.patches", "score.search", "score.metrics"}
    for name in names:
        assert costs[name].keys() == own and costs[name]["coreset"]["seconds"] > 0
        found = objectives(records[name], wanted, warm[name], costs[name])
        assert isinstance(found, tuple)
        _, total, scoring = found
        assert total == pytest.approx(sum(each["seconds"] for each in costs[name].values()))
        parts = [costs[name][f"score.{x}"] for x in ("decode", "network", "patches", "search")]
        assert scoring == pytest.approx(sum(each["seconds"] for each in parts))
        assert read_runs([root / name]).runs[0].metrics["seconds"] == pytest.approx(total)
    unknown = {"coreset": {"seconds": None, "cached": True}}
    assert objectives(records["same"], wanted, warm["same"], unknown) is None
    assert objectives(records["same"], wanted, warm["same"]) is None  # of an earlier version
    assert objectives(records["same"], wanted, []) is not None
    taken = train(root, "taken", *on, "resume=true")
    assert taken.code == 0 and "finished before" in taken.out
    source = Path((root / "taken/resumed_from.txt").read_text().strip())
    assert read_provenance(root / "taken")["warm"] == warm[source.name]
    assert read_provenance(root / "taken")["costs"] == costs[source.name]
    mine = read_provenance(root / "taken")
    assert mine["overrides"][-1] == "resume=true" and mine["choices"]["coreset"] == "greedy"


def test_entries_of_a_wrong_shape_are_made_again(root: Path) -> None:
    on = ["cache.enabled=true", "figures=false"]
    assert train(root, "first", *on).code == 0
    store = Store(root / "cache")
    for kind in ("images", "orders"):
        for entry in store.entries():
            tensors = store.get(entry.key)
            assert tensors is not None
            if entry.key.startswith(kind):
                cut = {name: x[:-1] if x.ndim else x for name, x in tensors.items()}
                cut.pop("mask", None)
                store.put(entry.key, cut)
            elif kind == "images" and entry.key.startswith("maps"):
                entry.path.unlink()
        told = rf"{kind}/\S+ is damaged|more entries of the cache \S+ are damaged"
        with pytest.warns(UserWarning, match=told) as found:
            assert train(root, kind, *on).code == 0
        assert f"cache-v2/{kind}/" in str(found[0].message)
        assert results(root / kind) == results(root / "first")
