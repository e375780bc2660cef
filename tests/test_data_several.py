"""Several categories in one memory, and anomalous images among those to train on."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from patchcore.commands.overrides import as_typed
from patchcore.data.mstc import MSTCConfig
from patchcore.data.mtd import MTDConfig, MTDSplit
from patchcore.data.mvtec import MVTecConfig
from patchcore.data.realiad import RealIADConfig
from patchcore.data.sample import DataConfig, Sample, Split, contaminated
from patchcore.errors import InputError
from tests.images import write_image, write_mask
from tests.runs import TINY, patchcore


def write_categories(root: Path) -> Path:
    """Categories bolt and 01, each with 10 training, 3 good, 4 cut and 2 bent images."""
    kinds = {"train/good": 10, "test/good": 3, "test/cut": 4, "test/bent": 2}
    for number, name in enumerate(("bolt", "01")):
        for part, (kind, count) in enumerate(kinds.items()):
            for i in range(count):
                seed = 1000 * number + 100 * part + i
                write_image(root / name / kind / f"{i}.png", (40, 40), seed)
                if kind == "test/cut":
                    write_mask(root / name / f"ground_truth/cut/{i}.png", (40, 40))
    return root


def config(root: Path, category: object, **more: object) -> MVTecConfig:
    return MVTecConfig(root=str(root), category=category, **more)  # type: ignore[arg-type]


# --- several categories ----------------------------------------------------------------------


def test_a_list_of_categories_is_one_split(tmp_path: Path) -> None:
    write_categories(tmp_path)
    both = config(tmp_path, ["bolt", "01"]).read()
    each = {name: config(tmp_path, name).read() for name in ("bolt", "01")}
    for side in ("train", "test"):
        of_each = [sample for split in each.values() for sample in getattr(split, side)]
        assert [sample.path for sample in getattr(both, side)] == [s.path for s in of_each]
    assert Counter(sample.category for sample in both.test) == {"bolt": 9, "01": 9}
    assert {sample.category for sample in each["bolt"].test} == {""}
    few = config(tmp_path, ("01", "bolt"), shots=2).read()  # of each
    assert [sample.category for sample in few.train] == ["01", "01", "bolt", "bolt"]


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ([], "data.category is an empty list"),
        (["bolt", "bolt"], "data.category names bolt twice"),
        (["bolt", 1], "data.category: .* has no category '1'; it has 01, bolt; in a file, names"),
        ([""], "data.category is empty: name a category"),
        ("bolt/", "data.category: bolt/: write bolt$"),
        ("./bolt", r"data.category: \./bolt: write bolt$"),
        (["bolt", "bolt/"], "data.category: bolt/: write bolt$"),
        ("../data/bolt", r"data.category: \.\./data/bolt is a path: give the name of a folder"),
        (".", r"data.category: \. is a path: give the name of a folder in data\.root"),
        ("/data/bolt", "data.category: /data/bolt is a path: give the name of a folder in data"),
        (1, "data.category: .* has no category '1'; it has 01, bolt; in a file, names that look"),
        (None, "data.category must be a name or a list of names, got None"),
        (["bolt", "nut"], "data.category: .* has no category 'nut'; it has 01, bolt"),
    ],
)
def test_lists_that_are_no_categories(tmp_path: Path, category: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        config(write_categories(tmp_path), category).read()


def test_names_in_lists_stay_names() -> None:
    assert as_typed(["data.category=[1,1e3,nut]"]) == ["data.category=['1','1e3',nut]"]
    assert as_typed(["data.category=[1],[2,nut]"]) == ["data.category=['1'],['2',nut]"]
    for same in ("data.category=['1']", "data.category=[nut,01]", "layers.names=[2,3]"):
        assert as_typed([same]) == [same]
    tree = OmegaConf.structured(MVTecConfig)
    tree.category = ["01", "02"]
    assert OmegaConf.to_object(tree).category == ["01", "02"]


# --- contamination ---------------------------------------------------------------------------


def test_contamination_moves_a_share_of_the_training_images_number(tmp_path: Path) -> None:
    write_categories(tmp_path)
    clean = config(tmp_path, "bolt").read()
    found = config(tmp_path, "bolt", contamination=0.2).read()
    assert found.train[:10] == clean.train and len(found.train) == 12
    moved = found.train[10:]
    assert all(sample.label == 1 for sample in moved)
    assert found.test == [sample for sample in clean.test if sample not in moved]
    assert set(found.test) | set(moved) == set(clean.test)
    assert "12 training (2 of them anomalous), 3 nominal test and 4 anomalous" in str(found)
    more = config(tmp_path, "bolt", contamination=0.4).read().train
    assert set(more) > set(found.train) and len(more) == 14
    other = {
        tuple(config(tmp_path, "bolt", contamination=0.2, contamination_seed=seed).read().train)
        for seed in range(5)
    }
    assert tuple(found.train) in other and len(other) > 1
    both = config(tmp_path, ["bolt", "01"], contamination=0.2).read()
    assert Counter(x.category for x in both.train if x.label) == {"bolt": 2, "01": 2}


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.01, "data.contamination: 0.01 of 10 nominal training images rounds to 0 images"),
        (
            0.6,
            "data.contamination: 0.6 of 10 nominal training images is 6, which leaves none",
        ),
        (1.0, r"data.contamination must be in \[0, 1\), got 1.0"),
    ],
)
def test_shares_that_cannot_be(tmp_path: Path, share: float, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        config(write_categories(tmp_path), "bolt", contamination=share).read()


def test_without_anomalous_images_none_can_be_moved() -> None:
    nominal = [Sample(Path(f"{i}.png"), 0) for i in range(10)]
    with pytest.raises(InputError, match=r"^data.contamination: there are no anomalous images"):
        contaminated(Split(nominal, nominal[:2]), [], 0.1, 0)


@pytest.mark.parametrize("kind", [MSTCConfig, RealIADConfig])
def test_frames_of_a_video_and_views_of_a_part_are_one_thing(kind: type[DataConfig]) -> None:
    test = [Sample(Path(f"{folder}/{i}.jpg"), i % 2) for folder in "ab" for i in range(3)]
    assert kind()._inseparable(test) == [test[:3], test[3:]]


def test_images_of_one_thing_move_together() -> None:
    a, b, c = ([Sample(Path(f"{x}{i}.png"), i % 2, "cut") for i in range(4)] for x in "abc")
    nominal = [Sample(Path(f"{i}.png"), 0) for i in range(10)]
    found = contaminated(Split(nominal, [*a, *b, *c]), [a, b, c], 0.1, 0)
    moved = set(found.train[10:])
    assert moved in [set(x) for x in (a, b, c)]
    assert not moved & set(found.test) and len(found.test) == 8


@pytest.mark.filterwarnings("ignore:data. .* lacks :UserWarning")  # of folders
def test_no_photograph_of_a_tile_is_on_both_sides(tmp_path: Path) -> None:
    for number in range(1, 61):
        folder = tmp_path / ("MT_Crack" if number % 3 == 0 else "MT_Free") / "Imgs"
        for exposure in (1, 2, 3, 4, 5, 6):
            seed = 10 * number + exposure
            write_image(folder / f"exp{exposure}_num_{1000 * number + exposure}.jpg", seed=seed)
    kept = MTDConfig(root=str(tmp_path), split=MTDSplit.grouped, contamination=0.05).read()
    train, test = (
        {int(x.path.stem.split("_")[2]) // 1000 for x in side} for side in (kept.train, kept.test)
    )
    assert any(sample.label for sample in kept.train) and not train & test
    apart = MTDConfig(root=str(tmp_path), split=MTDSplit.random, contamination=0.05).read()
    assert sum(sample.label for sample in apart.train) == round(0.05 * 40 * 6 * 0.8)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("test/bent/0.png", "test images that are training images too: 1 of 8"),
        ("train/good/0.png", "anomalous images that are nominal images too: 1 "),
    ],
)
def test_copies_of_anomalous_training_images_are_told(
    tmp_path: Path, place: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_categories(tmp_path) / "bolt"
    cut = folder / "test/cut/0.png"
    (folder / place).write_bytes(cut.read_bytes())

    def first(self: DataConfig, test: list[Sample]) -> list[list[Sample]]:
        return [[sample for sample in test if sample.path == cut]]

    monkeypatch.setattr(DataConfig, "_inseparable", first)
    monkeypatch.setattr("patchcore.data.sample.contaminated", take_first)
    with pytest.warns(UserWarning, match=message):
        config(tmp_path, "bolt", contamination=0.1).read()


def take_first(split: Split, groups: list[list[Sample]], share: float, seed: int) -> Split:
    moved = groups[0]
    return Split(split.train + moved, [x for x in split.test if x not in moved])


# --- a run -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:backbone resnet18 has random weights")
def test_a_run_on_several_contaminated_categories(tmp_path: Path) -> None:
    root = write_categories(tmp_path / "data")
    given = ["backbone=resnet18", "backbone.weights=none", *TINY, "logger=none", "figures=false"]
    given += ["data=mvtec", f"data.root={root}", "data.category=[bolt,01]"]
    given += ["data.contamination=0.2", f"hydra.run.dir={tmp_path / 'run'}"]
    done = patchcore("train", *given)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (record["train_images"], record["test_images"]) == (24, 14)
    settings = OmegaConf.load(tmp_path / "run/config.yaml").data
    assert settings.category == ["bolt", "01"] and settings.contamination == 0.2
    assert list(record["categories"]) == ["01", "bolt"]
    with (tmp_path / "run/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, told in record["categories"].items():
        own = [row for row in rows if f"/{name}/" in row["path"]]
        assert {row["category"] for row in own} == {name}
        good, bad = ([float(x["score"]) for x in own if x["label"] == y] for y in "01")
        pairs = [(b > g) + 0.5 * (b == g) for b in bad for g in good]
        assert told["images"] == len(own) == 7
        assert told["metrics"]["image_auroc"] == pytest.approx(sum(pairs) / len(pairs))
        assert 0 <= told["metrics"]["pixel_auroc"] <= 1
        assert set(told["undefined"]) == {"aupimo"} and told["metrics"]["aupimo"] is None
        assert f"image_auroc.{name}" in done.out
    types = record["defect_types"]
    assert sum(each["images"] for each in types.values()) == 8
    assert {kind.split("/")[0] for kind in types} == {"01", "bolt"}
    refused = patchcore("train", *given, "decision.false_alarms=0.1")
    assert refused.code == 1 and "needs nominal training images" in refused.err
