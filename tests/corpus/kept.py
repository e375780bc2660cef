"""Remains of earlier runs, and weights: run folders, cache entries, artifacts."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as packed
from torch import nn

from patchcore import sealed
from patchcore._weights import check_file, load_file
from patchcore.artifact import load
from patchcore.cache import Store
from patchcore.errors import InputError
from patchcore.report.reading import read_run
from patchcore.resume import Finished, damage, write_provenance
from tests.corpus.case import REFUSED, RIGHT, WARNED, case

# --- weights ----------------------------------------------------------------------------------


class Mine:
    """An object whose pickle would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "made"),)


def state(**changes: Any) -> dict[str, Any]:
    return {"weight": torch.eye(2), "bias": torch.zeros(2), **changes}


def weights(title: str, name: str, content: Any, outcome: str = REFUSED, words: str = "") -> None:
    """Add a case of weights: bytes, or an object that `torch.save` writes."""

    @case("weights", title, outcome, words)
    def act(folder: Path) -> Any:
        path = folder / name
        made = content(folder) if callable(content) else content
        if isinstance(made, bytes):
            path.write_bytes(made)
        elif made is not None:
            torch.save(made, path)
        network = nn.Linear(2, 2)
        try:
            check_file(str(path))
            with torch.no_grad():
                load_file(network, path)
        finally:
            assert not (folder / "made").exists(), "code was executed"
        return torch.equal(network.weight, torch.eye(2))


TENSORS = packed(state())
CANNOT = "cannot be read: "
weights("sound", "w.safetensors", TENSORS, RIGHT)
weights(
    "in a trainer's wrapper",
    "w.ckpt",
    {"state_dict": {f"module.{k}": v for k, v in state().items()}},
    RIGHT,
)
weights("in half precision", "w.pth", {k: v.half() for k, v in state().items()}, RIGHT)
weights("missing", "w.pth", None, words="backbone.weights: no such file")
weights("a folder", "w.pth", lambda f: (f / "w.pth").mkdir(), words="is a folder: name a file")
weights("empty", "w.safetensors", b"", words=CANNOT)
weights("cut in half", "w.safetensors", TENSORS[: len(TENSORS) // 2], words=CANNOT)
weights("a header longer than the file", "w.safetensors", b"\xff" * 8 + TENSORS[8:], words=CANNOT)
weights("text", "w.pth", b"weights", words=CANNOT)
weights("an archive of something else", "w.pt", b"PK\x05\x06" + bytes(18), words=CANNOT)
weights("code", "w.pth", lambda f: state(more=Mine(f)), words="it is not a plain file of tensors")
weights(
    "a network, not its state",
    "w.pth",
    lambda _: nn.Linear(2, 2),
    words="save the network's state_dict",
)
weights("a list", "w.pth", [1, 2], words="holds an object of type list, not a state dict")
weights("no tensors", "w.pth", {"epoch": 3}, words="holds no tensors by name (only epoch)")
weights("of another network", "w.pth", {"conv": torch.ones(1)}, words="lacks 'weight'")
weights("of another width", "w.pth", state(weight=torch.ones(3, 2)), words="as (3, 2), but the")
weights("with NaN", "w.pth", state(bias=torch.full((2,), float("nan"))), words="NaN or infinite")
weights("quantised", "w.pth", state(weight=torch.ones(2, 2, dtype=torch.int8)), words="unquantised")
weights("complex", "w.pth", state(weight=torch.ones(2, 2) * 1j), words="as complex64")

# --- run folders ------------------------------------------------------------------------------

RECORD = {"image_auroc": 1.0, "test_images": 2, "seconds": {"extract": 1.0, "score": 0.5}}
SCORES = "path,label,defect_type,score\na.png,0,good,1.5\nb.png,1,hole,2.5\n"


def run_folder(folder: Path) -> Path:
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\ncoreset:\n  ratio: 0.1\n")
    (run / "fingerprint.txt").write_text("a1\n")
    write_provenance(run, {"fingerprint": "a1", "settings": {"seed": 0}, "warm": []})
    (run / "scores.csv").write_text(SCORES)
    (run / "metrics.json").write_text(json.dumps(RECORD))
    Finished(folder / "runs").started("a1", run)
    return run


def left(
    title: str,
    change: Callable[[Path], Any],
    words: str,
    told: bool = True,
) -> None:
    """Add a case of a run's folder that is neither shown as numbers nor taken over.

    `told` is whether taking it over is refused with a warning; settings are not taken over.
    """

    @case("run folders", title, REFUSED, words)
    def act(folder: Path) -> Any:
        run = run_folder(folder)
        change(run)
        assert (damage(run) is not None) == told, damage(run)
        if told:
            assert "\n" not in str(damage(run))
        raise InputError(read_run(run).problem or "taken as it is")


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(content)


def record(**changes: Any) -> Callable[[Path], Any]:
    return text("metrics.json", json.dumps({**RECORD, **changes}))


@case("run folders", "sound")
def _(folder: Path) -> Any:
    run = run_folder(folder)
    return read_run(run).finished and Finished(folder / "runs").find("a1") == run.resolve()


@case("run folders", "a clock that jumps a century")
def _(folder: Path) -> Any:
    run = run_folder(folder)
    for path in run.iterdir():
        os.utime(path, (2**32, 2**32))
    return read_run(run).finished and Finished(folder / "runs").find("a1") == run.resolve()


def piped(path: Path) -> None:
    """Put a pipe in the place of a file, which whoever reads it waits for."""
    path.unlink()
    os.mkfifo(path)


def linked(path: Path, target: str) -> None:
    """Put a link in the place of a file."""
    path.unlink()
    path.symlink_to(target)


ACCUSED = "damaged: metrics.json"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
left("metrics: empty", text("metrics.json", ""), ACCUSED)
left("metrics: cut in half", text("metrics.json", json.dumps(RECORD)[:20]), ACCUSED)
left("metrics: zeros after a power failure", text("metrics.json", "\0" * 99), ACCUSED)
left("metrics: NaN", record(image_auroc=float("nan")), ACCUSED)
left("metrics: above 1", record(image_auroc=1.5), ACCUSED)
left("metrics: edited", record(image_auroc=0.9), "scores.csv: its image AUROC is 1.0000, not")
left(
    "scores: a label edited",
    text("scores.csv", SCORES.replace("b.png,1", "b.png,0")),
    "damaged: scores.csv: its image AUROC is nan",
)
left("metrics: a number of 400 digits", record(memory_bytes=10**400), ACCUSED)
left("metrics: brackets without end", text("metrics.json", "[" * 100_000), ACCUSED)
left("metrics: a list", text("metrics.json", "[1]"), ACCUSED)
left("metrics: words", record(image_auroc="0.9"), ACCUSED)
left(
    "metrics: a folder",
    lambda run: (run / "metrics.json").unlink() or (run / "metrics.json").mkdir(),
    "damaged: metrics.json",
)
left("scores: a row is missing", text("scores.csv", SCORES[:-15]), "damaged: scores.csv")
left("scores: not finite", text("scores.csv", SCORES.replace("2.5", "nan")), "damaged: scores.csv")
left(
    "scores: a quote that never ends",
    text("scores.csv", SCORES[:40] + '"' + "x\n" * 99_999),
    "damaged: scores.csv",
)
left("scores: not of so many images", record(test_images=3), "damaged: scores.csv")
left(
    "provenance: of another run",
    text("provenance.json", '{"fingerprint": "b2", "settings": {"a": 1}, "warm": []}'),
    "provenance.json: belongs to another run",
)
left(
    "provenance: brackets without end",
    text("provenance.json", '{"a":' * 100_000),
    "provenance.json",
)
left("provenance: a list", text("provenance.json", "[]"), "unreadable settings: provenance.json")
left(
    "settings: a tag",
    text("config.yaml", "a: !!python/object/apply:os.system [ls]"),
    "YAML tags",
    told=False,
)
left(
    "settings: 2^40 words by aliases",
    text("config.yaml", BOMB),
    "YAML anchors and aliases",
    told=False,
)
left(
    "settings: brackets without end",
    text("config.yaml", "[" * 20_000),
    "unreadable settings",
    told=False,
)
left("settings: cut off", text("config.yaml", "seed: [1, 2"), "config.yaml: not YAML", told=False)
left("scores: a pipe", lambda run: piped(run / "scores.csv"), "damaged: scores.csv")
left("unfinished", lambda run: (run / "metrics.json").unlink(), "unfinished: no metrics.json")


@case("run folders", "a pointer to nowhere", WARNED, "is damaged; it is dropped")
def _(folder: Path) -> Any:
    run_folder(folder)
    (pointer,) = (folder / "runs/a1").iterdir()
    pointer.write_bytes(b"\0\0\0")
    return Finished(folder / "runs").find("a1") is None and not pointer.exists()


@case("run folders", "a pipe in place of a pointer", WARNED, "is damaged; it is dropped")
def _(folder: Path) -> Any:
    run_folder(folder)
    (pointer,) = (folder / "runs/a1").iterdir()
    piped(pointer)
    return Finished(folder / "runs").find("a1") is None and not pointer.exists()


# --- cache entries ----------------------------------------------------------------------------

DROPPED = "it is dropped and will be rebuilt"


def entry(title: str, change: Callable[[Path], Any], outcome: str = WARNED) -> None:
    """Add a case of a cache entry that gives nothing, and can be made again."""

    @case("cache entries", title, outcome, DROPPED if outcome == WARNED else "")
    def act(folder: Path) -> Any:
        store, content = Store(folder), {"0": torch.arange(6.0).reshape(1, 2, 3)}
        store.put("maps/a", content)
        change(store.root / "maps/a.tensors")
        found = store.get("maps/a")
        Store(folder).put("maps/a", content)
        again = Store(folder).get("maps/a")
        return found is None and again is not None and torch.equal(again["0"], content["0"])


def changed(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def counted(path: Path) -> None:
    """An entry whose checksum is one number, which Python's `bytes` would take for a length."""
    path.write_bytes(packed({"xxh3": torch.tensor(10**15)}))


entry("empty", lambda path: path.write_bytes(b""))
entry("cut in half", lambda path: path.write_bytes(path.read_bytes()[:99]))
entry("a changed byte", lambda path: changed(path, -40))
entry("a changed byte of its header", lambda path: changed(path, 12))
entry("text", lambda path: path.write_text("maps"))
entry("zeros after a power failure", lambda path: path.write_bytes(bytes(200)))
entry("a header longer than the file", lambda path: path.write_bytes(b"\xff" * 99))
entry("tensors without checksum", lambda path: path.write_bytes(packed(state())))
entry("a checksum of 10^15", counted)
entry("a pipe in its place", piped)
entry("a link to nowhere in its place", lambda path: linked(path, "nowhere"))
entry("a link to itself in its place", lambda path: linked(path, path.name))
entry("a link to a device that never ends", lambda path: linked(path, "/dev/zero"))
entry("an empty folder in its place", lambda path: (path.unlink(), path.mkdir()))
entry("gone", lambda path: path.unlink(), RIGHT)


@case("cache entries", "another's", WARNED, DROPPED)
def _(folder: Path) -> Any:
    store = Store(folder)
    store.put("maps/a", {"0": torch.ones(1, 1, 1)})
    (store.root / "maps/a.tensors").rename(store.root / "maps/b.tensors")
    return store.get("maps/b") is None


@case("cache entries", "a folder with files in its place", WARNED, "keeps nothing new: ")
def _(folder: Path) -> Any:
    store = Store(folder)
    (store.root / "maps/a.tensors/b").mkdir(parents=True)
    return store.get("maps/a") is None and (store.root / "maps/a.tensors/b").is_dir()


# --- artifacts --------------------------------------------------------------------------------


@cache
def fitted() -> Path:
    """An artifact, made once."""
    from patchcore import PatchCore
    from patchcore.data.transforms import ImageConfig

    folder = Path(tempfile.mkdtemp(prefix="corpus-")) / "model"
    images = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    PatchCore().fit(images).save(folder, image=ImageConfig(resize=32, crop=24))
    return folder


def artifact(title: str, change: Callable[[Path], Any], words: str) -> None:
    """Add a case of an artifact that is not taken."""

    @case("artifacts", title, REFUSED, words)
    def act(folder: Path) -> Any:
        copy = shutil.copytree(fitted(), folder / "model")
        change(copy)
        return load(copy)


def signed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the description and sign it anew, as somebody with bad intentions can."""

    def act(folder: Path) -> None:
        path = folder / "artifact.yaml"
        found = yaml.safe_load(path.read_bytes().partition(b"\n")[2])
        change(found)
        body = found["text"] if "text" in found else yaml.safe_dump(found)
        path.write_bytes(sealed._with_digest(body.encode()))

    return act


def cut(name: str) -> Callable[[Path], Any]:
    return lambda f: (f / name).write_bytes((f / name).read_bytes()[:300])


def moved(folder: Path) -> None:
    """Put the artifact below its folder, as a run has it."""
    folder.rename(folder.with_name("artifact"))
    folder.mkdir()
    folder.with_name("artifact").rename(folder / "artifact")


def backbone(**changes: Any) -> Callable[[Path], None]:
    return signed(lambda x: x["members"][0]["settings"]["backbone"].update(changes))


artifact("its folder missing", shutil.rmtree, "there is no such folder")
artifact(
    "its description missing", lambda f: (f / "artifact.yaml").unlink(), "has no artifact.yaml"
)
artifact(
    "its tensors missing",
    lambda f: (f / "model.safetensors").unlink(),
    "model.safetensors: is missing",
)
artifact("its tensors cut off", cut("model.safetensors"), "model.safetensors: is damaged")
artifact(
    "its tensors changed",
    lambda f: changed(f / "model.safetensors", -9),
    "model.safetensors: is damaged",
)
artifact("its description cut off", cut("artifact.yaml"), "artifact.yaml: is damaged")
artifact(
    "its description edited", lambda f: changed(f / "artifact.yaml", -9), "is damaged or was edited"
)
artifact(
    "its description another file",
    text("artifact.yaml", "seed: 1\n"),
    "was not written by patchcore",
)
artifact("its description a pipe", lambda f: piped(f / "artifact.yaml"), "is no file")
artifact("the folder of its run", moved, "it is a run's folder: give ")
artifact("of a newer format", signed(lambda x: x.update(format=99)), "install a newer patchcore")
artifact(
    "with a key of a newer version",
    signed(lambda x: x.update(tilt=1)),
    "holds tilt, which this version does not know",
)
artifact(
    "of an unknown method",
    signed(lambda x: x["members"][0]["settings"]["method"].update(kind="x")),
    "method=x is not known",
)
artifact(
    "of other weights",
    signed(lambda x: x["members"][0]["network"].update(digest="0")),
    "not the weights that the model was fitted with",
)
artifact(
    "code in its description",
    signed(lambda x: x.update(text="a: !!python/object/apply:os.system [ls]")),
    "is not understood",
)
artifact("brackets without end", signed(lambda x: x.update(text="[" * 20_000)), "is not understood")
artifact("a list of files that is none", signed(lambda x: x.update(files=[1])), "is not understood")
artifact(
    "files of no size",
    signed(lambda x: x.update(files={"model.safetensors": 3})),
    "is not understood",
)
artifact(
    "a file outside its folder",
    signed(lambda x: x["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
    "is not understood",
)
artifact("a reference to the environment", backbone(weights="${oc.env:HOME}"), "is not understood")
artifact(
    "a member that is no mapping",
    signed(lambda x: x.update(members=[3])),
    "members.0 must be a mapping {name: value}, got 3",
)
