"""A run's folder: finished results survive whatever ends the run that would replace them."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from patchcore.errors import InputError
from patchcore.runfolder import InUseError, RunFolder, listed, settle, unfinished
from patchcore.sealed import write_sealed
from tests.users import plain_user, protect

OLD = {
    "fingerprint.txt": f"{'0' * 32}\n",
    "config.yaml": "old",
    "metrics.json": "old",
    "scores.csv": "old",
    "figures/curves.png": "old",
    "figures/ratio_curve.png": "old",
    "csv/metrics.csv": "old",
}
NEW = {
    "fingerprint.txt": f"{'1' * 32}\n",
    "config.yaml": "new",
    "metrics.json": "new",
    "scores.csv": "new",
    "figures/curves.png": "new",
    "wandb/offline-run-1/files/x": "new",
}
OTHERS = {"notes.txt": "mine", "figures/own.png": "mine", ".hydra/overrides.yaml": "[]"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def visible(folder: Path) -> dict[str, str]:
    """All files but this module's own hidden ones."""
    own = {".lock", ".running", ".contents", ".checksums", ".unfinished", ".finished", ".moving"}
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {n: p.read_text() for n, p in named.items() if own.isdisjoint(Path(n).parts)}


def earlier(folder: Path) -> None:
    """A folder with a finished run, and files that are not the run's."""
    with RunFolder(folder) as place:
        write(place.new, OLD)
        place.commit()
    write(folder, OTHERS)


@pytest.mark.parametrize("content", [b"\xff\0\n", b"/etc/passwd\n../mine\n"])
def test_a_damaged_list_of_results_removes_nothing_of_others(
    tmp_path: Path, content: bytes
) -> None:
    earlier(tmp_path)
    (tmp_path / ".contents").write_bytes(content)
    with RunFolder(tmp_path) as place:
        write(place.new, NEW)
        place.commit()
    assert not unfinished(tmp_path)
    assert visible(tmp_path).items() >= (NEW | OTHERS).items()


def test_new_results_replace_the_old_ones_and_nothing_else(tmp_path: Path) -> None:
    earlier(tmp_path)
    with RunFolder(tmp_path) as place:
        write(place.new, NEW)
        (place.new / "wandb/latest").symlink_to("offline-run-1")
        assert visible(tmp_path) == OLD | OTHERS and unfinished(tmp_path)
        place.commit()
    assert not unfinished(tmp_path)
    assert os.readlink(tmp_path / "wandb/latest") == "offline-run-1"
    assert visible(tmp_path) == NEW | OTHERS and not (tmp_path / "csv").exists()


def test_write_protected_results_are_replaced() -> None:
    with plain_user() as folder:
        earlier(folder)
        for name in ("figures", "csv"):
            protect(folder / name)
        with RunFolder(folder) as place:
            place.check_folders(NEW)
            write(place.new, NEW)
            place.commit()
        assert visible(folder) == NEW | OTHERS and not (folder / "csv").exists()
        protect(folder / "figures")
        told = pytest.raises(InputError, match=r"/figures: belongs to another user, .*: name ano")
        with mock.patch("os.geteuid", return_value=-1), told, RunFolder(folder) as place:
            place.check_folders(NEW)
        assert visible(folder) == NEW | OTHERS


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_folders_without_results_stay_as_they_are(linked: bool, listed: bool) -> None:
    results = {name: text for name, text in OLD.items() if "/" not in name}
    told = "/run/figures: is write-protected: make it writable"
    with plain_user() as place:
        folder, figures = place / "run", place / ("figures" if linked else "run/figures")
        with RunFolder(folder) as run:
            write(run.new, results)
            run.commit()
        (figures / "mine").mkdir(parents=True)
        if linked:
            (folder / "figures").symlink_to(figures)
        if not listed:
            (folder / ".contents").unlink()
        protect(figures)
        with RunFolder(folder) as run:
            run.check_folders(results)
            with pytest.raises(InputError, match=told):
                run.check_folders(NEW)
            write(run.new, NEW)
            with pytest.raises(InputError, match=told):
                run.commit()
        assert (folder / "config.yaml").read_text() == "old" and not unfinished(folder)
        with RunFolder(folder) as run:
            write(run.new, results | {"config.yaml": "new"})
            run.commit()
        assert (folder / "config.yaml").read_text() == "new"
        for each in (figures, figures / "mine"):
            assert each.stat().st_mode & 0o777 == 0o555


@pytest.mark.parametrize("mode", [0o555, 0o311, 0o000])
def test_results_in_folders_that_a_link_leads_to(mode: int) -> None:
    with plain_user() as place:
        folder, figures = place / "run", place / "figures"
        earlier(folder)
        (folder / "figures").rename(figures)
        (figures / "inner").mkdir()
        (folder / "figures").symlink_to(figures)
        figures.chmod(mode)
        if mode != 0o311:
            told = pytest.raises(InputError, match="/run/figures: is write-protected")
            with RunFolder(folder) as run, told:
                run.check_folders(NEW)
            assert figures.stat().st_mode & 0o777 == mode
            figures.chmod(0o755)
        with RunFolder(folder) as run:
            run.check_folders(NEW)
            write(run.new, NEW)
            run.commit()
        figures.chmod(0o755)
        assert {path.name for path in figures.iterdir()} == {"curves.png", "inner", "own.png"}


@pytest.mark.parametrize("mode", [0o311, 0o000])
def test_results_in_folders_that_cannot_be_seen_are_replaced(mode: int) -> None:
    with plain_user() as folder:
        earlier(folder)
        with RunFolder(folder) as run:
            write(run.new, OLD | {"figures/images/a.png": "old", "figures/images/b.png": "old"})
            run.commit()
        for name in ("figures/images", "figures"):
            (folder / name).chmod(mode)
        new = NEW | {"figures/images/a.png": "new"}
        with RunFolder(folder) as run:
            run.check(new)
            run.check_folders(new)
            write(run.new, new)
            run.commit()
        assert visible(folder) == new | OTHERS


@pytest.mark.parametrize("finished", [False, True])
def test_a_trackers_run_that_takes_an_earlier_ones_name_stays(
    tmp_path: Path, finished: bool
) -> None:
    same, other = tmp_path / "wandb/run-a/run.wandb", tmp_path / "wandb/run-b/run.wandb"
    with RunFolder(tmp_path) as place:
        write(tmp_path, {"wandb/run-a/run.wandb": "old", "wandb/run-b/run.wandb": "old"})
        if finished:
            write(place.new, {"metrics.json": "old"})
            place.commit()
    for path in (same, other):
        os.utime(path, (1, 1))
    for content in ("new", "newer"):
        with RunFolder(tmp_path) as place:
            write(place.new, {"metrics.json": content})
            write(tmp_path, {"wandb/run-a/run.wandb": content})  # in the same second
            place.commit()
        os.utime(same, (2, 2))
        assert same.read_text() == content and not other.exists()


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\rb.png", "a\r\nb.png", "\udcff\x85\u2028.png", "\n"]
)
def test_results_of_any_name_go_with_their_run(tmp_path: Path, name: str) -> None:
    with RunFolder(tmp_path) as place:
        write(place.new, OLD | {f"figures/images/{name}": "old"})
        place.commit()
    write(tmp_path, {"b.png": "mine", "figures/images/a": "mine"})  # parts of such names
    with RunFolder(tmp_path) as place:
        write(place.new, NEW)
        place.commit()
    assert visible(tmp_path) == NEW | {"b.png": "mine", "figures/images/a": "mine"}


def test_a_list_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    earlier(tmp_path)
    (tmp_path / ".contents").write_text("".join(f"{name}\n" for name in OLD))
    (tmp_path / ".checksums").unlink()
    assert listed(tmp_path) == [*OLD]
    with RunFolder(tmp_path) as place:
        write(place.new, NEW)
        place.commit()
    assert visible(tmp_path) == NEW | OTHERS


def test_without_a_list_only_a_runs_own_names_are_removed(tmp_path: Path) -> None:
    earlier(tmp_path)
    (tmp_path / ".contents").unlink()  # as earlier versions left it
    with RunFolder(tmp_path) as place:
        write(place.new, {"metrics.json": "new"})
        place.commit()
    kept = OTHERS | {"csv/metrics.csv": "old"}
    assert visible(tmp_path) == kept | {"metrics.json": "new"}


@pytest.mark.parametrize("own", [True, False])
def test_without_a_list_the_model_of_the_run_is_known_by_its_fingerprint(
    tmp_path: Path, own: bool
) -> None:
    def make(new: Path) -> dict[str, Any]:
        (new / "model").write_text("old")
        return {"format": 1, "lineage": [{"fingerprint": ("0" if own else "2") * 32}]}

    with RunFolder(tmp_path) as place:
        write(place.new, OLD)
        place.commit()
    write_sealed(tmp_path / "artifact", "artifact.yaml", make)
    (tmp_path / ".contents").unlink()
    before = visible(tmp_path)
    with RunFolder(tmp_path) as place:
        assert place.holds("artifact/model") == own
        write(place.new, NEW | {"artifact/artifact.yaml": "new"})
        if own:
            place.commit()
        else:
            told = (
                r"artifact\.yaml: would be replaced, .*hidden files \(cp -a\), as \.contents is mi"
            )
            with pytest.raises(InputError, match=told):
                place.commit()
    new = NEW | {"artifact/artifact.yaml": "new", "csv/metrics.csv": "old"}
    assert visible(tmp_path) == (new if own else before)


@pytest.mark.parametrize("which", ["all", "wrong"])
def test_without_a_list_the_pictures_of_the_run_are_known_by_their_own(
    tmp_path: Path, which: str
) -> None:
    listed = f"figures/images_{which}.csv"
    pictures = {f"figures/images/good/{i}.png": "old" for i in range(2)}
    others = ["notes.txt", "figures/own.png", "figures/images", "../x", "figures/images/../own.png"]
    rows = [f"{i},{name}" for i, name in enumerate([*pictures, *others, "figures/images/\0"])]
    with RunFolder(tmp_path) as place:
        write(place.new, OLD | pictures | {listed: "\n".join(["path,picture", *rows, ""])})
        place.commit()
    write(tmp_path, OTHERS | {"figures/images/mine.png": "mine"})
    for name in (".contents", ".checksums"):  # as a copy without hidden files
        (tmp_path / name).unlink()
    new = NEW | {listed: "path,picture\n", "figures/images/good/1.png": "new"}
    with RunFolder(tmp_path) as place:
        place.check(new)
        write(place.new, new)
        place.commit()
    kept = OTHERS | {"figures/images/mine.png": "mine", "csv/metrics.csv": "old"}
    assert visible(tmp_path) == new | kept


NAMES = [
    *("config.yaml", "scores.csv", "figures/curves.png"),
    *("metrics.json", "fingerprint.txt", "provenance.json"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_files_that_are_not_of_a_run_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: "mine", "notes.txt": "mine"})
    told = rf"^{tmp_path}/{name}: would be replaced"
    with pytest.raises(InputError, match=told), RunFolder(tmp_path):
        pass
    assert visible(tmp_path) == {name: "mine", "notes.txt": "mine"} and not unfinished(tmp_path)
    (tmp_path / name).unlink()
    earlier(tmp_path)  # the lock was released
    assert visible(tmp_path).items() >= OLD.items()


@pytest.mark.parametrize("name", ["provenance.json", "fingerprint.txt"])
def test_files_that_are_not_of_a_run_count_beside_results_too(tmp_path: Path, name: str) -> None:
    with RunFolder(tmp_path) as place:
        write(place.new, {"metrics.json": "old"})
        place.commit()
    write(tmp_path, {name: "mine"})
    with pytest.raises(InputError, match=f"^{tmp_path}/{name}: would be"), RunFolder(tmp_path):
        pass
    assert visible(tmp_path) == {name: "mine", "metrics.json": "old"}


@pytest.mark.parametrize("results", [{}, OLD])
@pytest.mark.parametrize("name", ["artifact/artifact.yaml", "artifact", "distrusted.csv", "a/b/c"])
def test_results_never_replace_files_that_are_not_of_a_run(
    tmp_path: Path, name: str, results: dict[str, str]
) -> None:
    """Whatever their name is, which may be that of a folder of the results."""
    if results:
        earlier(tmp_path)
    write(tmp_path, {name: "mine"})
    before = visible(tmp_path)
    made = {f"{name}/artifact.yaml" if name == "artifact" else name: "new"}
    with RunFolder(tmp_path) as place:
        told = f"^{tmp_path}/{name}: would be replaced, but is not of a run"
        with pytest.raises(InputError, match=told):
            place.check(made)
        write(place.new, NEW | made)
        with pytest.raises(InputError, match=told):
            place.commit()
    assert visible(tmp_path) == before and not unfinished(tmp_path)
    (tmp_path / name).unlink()
    for _ in range(2):  # the second time, the file is of a run
        with RunFolder(tmp_path) as place:
            write(place.new, NEW | made)
            place.check(made)
            place.commit()
    assert visible(tmp_path).items() >= (NEW | made).items()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_the_old_results(tmp_path: Path, error: type[BaseException]) -> None:
    earlier(tmp_path)
    with pytest.raises(error), RunFolder(tmp_path) as place:
        write(place.new, NEW)
        raise error
    assert visible(tmp_path) == OLD | OTHERS and not unfinished(tmp_path)


class Killed(BaseException):
    """Stands for the end of the process."""


STEPS = ("unlink", "rename", "replace", "rmdir")


def test_killed_at_any_step_the_folder_ends_with_all_of_one_run(tmp_path: Path) -> None:
    """Every change of the disk in `commit` is the last one in turn."""
    step = 0
    while True:
        folder = tmp_path / str(step)
        earlier(folder)
        left = step

        def changed(name: str) -> Callable[..., object]:
            original = getattr(Path, name)

            def change(self: Path, *args: object, **more: object) -> object:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return original(self, *args, **more)

            return change

        place = RunFolder(folder)
        place.__enter__()
        write(place.new, NEW)
        survived = False
        with mock.patch.multiple(Path, **{name: changed(name) for name in STEPS}):
            try:
                place.commit()
                survived = True
            except Killed:
                pass
        place._lock.release()  # as the kernel does; nothing else is tidied
        seen = visible(folder)
        if "metrics.json" in seen:  # looks finished: then it is, and of one run
            results = {name: text for name, text in seen.items() if name not in OTHERS}
            assert results in (OLD, NEW), step
        else:
            assert unfinished(folder), step
        committed = any((folder / name).exists() for name in (".finished", ".moving"))
        with RunFolder(folder):
            pass  # the next start puts in order what was left
        after = visible(folder)
        assert after == (NEW if committed or survived or step else OLD) | OTHERS, step
        assert not unfinished(folder)
        if survived:
            break
        step += 1
    assert step > len(OLD)


def test_settling_an_orderly_folder_changes_nothing(tmp_path: Path) -> None:
    earlier(tmp_path)
    settle(tmp_path)
    assert visible(tmp_path) == OLD | OTHERS


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with RunFolder(folder):
        ready.set()
        multiprocessing.Event().wait(60)


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(InUseError, match=f"process {process.pid} on .* runs there: wait"):
        RunFolder(tmp_path).__enter__()
    assert (tmp_path / ".unfinished").is_dir()  # the other's
    process.kill()
    process.join()
    with RunFolder(tmp_path) as place:
        assert list(place.new.iterdir()) == []
