"""`make demo`, with the very commands of the Makefile: what it finds and what it leaves."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from patchcore.data.images import read_image
from tests.runs import REPOSITORY, Outcome, patchcore

# Wide enough for other machines and libraries; at 1 the task would be too easy to compare settings.
BANDS = {
    "texture": {"image_auroc": (0.85, 0.97), "pixel_auroc": (0.95, 0.99), "aupro": (0.88, 0.97)},
    "object": {"image_auroc": (0.93, 0.999), "pixel_auroc": (0.96, 0.999), "aupro": (0.90, 0.98)},
}


def commands() -> list[list[str]]:
    """The arguments of each `patchcore` that the Makefile's target runs."""
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    lines = [shlex.split(line) for line in recipe[1].splitlines()]
    assert all(program == "$(BIN)/patchcore" for program, *_ in lines)
    return [arguments for _, *arguments in lines]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """The folder that `make demo` was run in, and what it said. Images are drawn anew."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        done = [patchcore(*arguments) for arguments in commands()]
    assert all(outcome.code == 0 for outcome in done), done
    return folder, done


def test_it_finds_the_defects_and_not_all_of_them(demo: tuple[Path, list[Outcome]]) -> None:
    found = {}
    for file in (demo[0] / "outputs/demo").glob("*/metrics.json"):
        config = (file.parent / "config.yaml").read_text()
        category = re.search(r"^  category: (\w+)$", config, re.MULTILINE)
        assert category
        found[category[1]] = json.loads(file.read_text())
    assert found.keys() == BANDS.keys()
    for category, bands in BANDS.items():
        for key, (low, high) in bands.items():
            assert low < found[category][key] < high, (category, key)


def test_it_prints_the_metrics_and_where_the_pictures_are(
    demo: tuple[Path, list[Outcome]],
) -> None:
    folder, [sweep] = demo
    for key in ("image_auroc", "aupro"):
        assert len(re.findall(rf"^{key} +0\.\d{{4}}$", sweep.out, re.MULTILINE)) == 2
    for place in re.findall(r"^figures and tables: (.+)$", sweep.out, re.MULTILINE):
        gallery = read_image(Path(place) / "figures/gallery.png")
        assert min(gallery.shape[:2]) > 500
        warm = gallery[..., 0].astype(int) - gallery[..., 2] > 60  # a map's highest scores
        assert np.mean(warm[gallery.shape[0] * 2 // 3 :]) > 2 * np.mean(warm[: len(warm) // 3])
    page = folder / sweep.out.split("report: ")[1].strip()
    assert page.is_file()
