import math
import os
import re
import shutil
import stat
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from patchcore.cache import (
    FOLDER,
    RECORDS,
    SUFFIX,
    CacheConfig,
    Precision,
    Store,
)
from patchcore.commands.cache import main as cache_command
from patchcore.data.generated import GeneratedConfig
from patchcore.digests import digest, file_digest, tensors_digest
from patchcore.errors import InputError
from patchcore.map_cache import MapCache, timed, took
from patchcore.resume import Finished
from patchcore.settings import effective
from patchcore.writing import replace_with
from tests.processes import forkserver
from tests.runs import patchcore


def some(seed: int, size: int = 1000) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(size, generator=generator), "flag": torch.tensor(seed % 2 == 0)}


def same(a: dict[str, Tensor] | None, b: dict[str, Tensor]) -> bool:
    return a is not None and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_what_is_put_is_got(tmp_path: Path, dtype: torch.dtype) -> None:
    store = Store(tmp_path)
    tensors = {
        "strided": torch.randn(4, 6).to(dtype).T,
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
    }
    assert store.get("maps/a") is None
    store.put("maps/a", tensors)
    assert same(store.get("maps/a"), tensors)
    assert [entry.key for entry in store.entries()] == ["maps/a"]
    assert store.size() == store.entries()[0].path.stat().st_size
    assert same(Store(tmp_path).get("maps/a"), tensors)


@pytest.mark.parametrize("damage", ["bit", "torn", "empty", "header", "pipe"])
def test_a_damaged_entry_is_named_dropped_and_rebuilt(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.put("maps/a", some(1))
    path = store.entries()[0].path
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-100] ^= 4
    elif damage == "header":
        at = data.index(b'"F32"')
        data[at : at + 5] = b'"I32"'
    else:
        data = data[: len(data) // 2 if damage == "torn" else 0]
    if damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(data)
    with pytest.warns(UserWarning, match=f"{path} is damaged"):
        assert store.get("maps/a") is None
    assert not path.exists()
    store.put("maps/a", some(1))
    assert same(store.get("maps/a"), some(1))


def test_of_many_damaged_entries_the_first_are_named(tmp_path: Path) -> None:
    store, keys = Store(tmp_path), [f"maps/{number}" for number in range(9)]
    for key in keys:
        store.put(key, some(1))
        (store.root / f"{key}{SUFFIX}").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged") as told:
        assert [store.get(key) for key in keys] == [None] * 9
    *named, last = [str(each.message) for each in told]
    assert all(f"{key}{SUFFIX} is damaged" in line for key, line in zip(keys, named, strict=False))
    assert len(named) == 3 and store.entries() == []
    assert last == (
        f"more entries of the cache {store.root} are damaged; each is dropped and will be rebuilt"
    )
    store.put(keys[0], some(1))
    assert same(store.get(keys[0]), some(1))


def test_an_entry_of_an_earlier_version_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("maps/a", some(1))
    earlier = {**some(1), "checksum": torch.zeros(16, dtype=torch.uint8)}
    store.entries()[0].path.write_bytes(save(earlier))
    assert store.get("maps/a") is None and store.entries() == []  # without a warning
    store.put("maps/a", some(1))
    assert same(store.get("maps/a"), some(1))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for i in range(10):
        store.put(f"maps/{i}", some(i))
        path = store.entries()[-1].path
        os.utime(tmp_path / FOLDER / f"maps/{i}{SUFFIX}", (i, i))
    size = path.stat().st_size
    assert same(store.get("maps/0"), some(0))  # now the latest used
    limited = Store(tmp_path, limit=10 * size)
    limited.put("maps/10", some(10))
    left = {entry.key for entry in limited.entries()}
    assert {"maps/0", "maps/10"} <= left and "maps/1" not in left
    assert limited.size() <= 10 * size


def test_entries_from_the_future_go_first_and_have_no_age(tmp_path: Path) -> None:
    """The clock ran ahead when they were written."""
    store = Store(tmp_path, limit=3000)
    for number in range(4):
        store.put(f"maps/{number}", {"x": torch.zeros(100)})
    paths = {entry.key: entry.path for entry in store.entries()}
    now = time.time()
    for key, ahead in (("maps/0", -9e6), ("maps/1", 9e8), ("maps/2", 60), ("maps/3", -60)):
        os.utime(paths[key], (now + ahead, now + ahead))
    order = [entry.key for entry in store.entries()]
    assert order == ["maps/1", "maps/0", "maps/3", "maps/2"]
    os.utime(paths["maps/0"], (now + 9e8, now + 9e8))
    assert "unused for up to 0.0 days" in patchcore("cache", "show", "--root", str(tmp_path)).out


def test_the_limit_holds_while_entries_come(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=100_000)
    peak = 0
    for i in range(100):
        store.put(f"maps/{i}", some(i))
        peak = max(peak, store.size())
    assert 80_000 < peak <= 100_000
    large = "cache.limit_gib=9.31e-05, and one has 0.000186 GiB: raise the limit"
    with pytest.warns(UserWarning, match=rf"^the cache {store.root} keeps no entry above {large}$"):
        store.put("maps/huge", some(0, 50_000))
    for again in (store, Store(tmp_path, limit=100_000)):  # as of the next point of a multirun
        again.put("maps/huger", some(0, 60_000))  # says so once
    assert store.get("maps/huge") is None and store.size() > 0  # dropped nothing for nothing


def test_clear_leaves_nothing_but_what_is_being_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("maps/a", some(1))
    abandoned, fresh = store.root / "maps/.a-1.part", store.root / "maps/.a-2.part"
    for path in (abandoned, fresh):
        path.write_bytes(b"x")
    os.utime(abandoned, (1, 1))
    size = store.size()
    assert store.clear() == size > 0
    assert store.entries() == [] and not abandoned.exists() and fresh.exists()


def test_what_is_in_the_place_of_entries_is_shown_and_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    store.put("maps/z", some(1))
    place, mine = store.root / "maps", tmp_path / "mine"
    mine.write_text("mine")
    for name, target in {"a": "nowhere", "b": f"b{SUFFIX}", "c": str(mine), "d": "."}.items():
        (place / f"{name}{SUFFIX}").symlink_to(target)
    (place / f"e{SUFFIX}").mkdir()
    os.mkfifo(place / f"f{SUFFIX}")
    (place / ".g-1.part").symlink_to("nowhere")
    os.utime(place / ".g-1.part", (1, 1), follow_symlinks=False)
    (place / f"h{SUFFIX}/own").mkdir(parents=True)
    cache_command(["show", "--root", str(tmp_path)])
    assert " 8 entries" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"h\.tensors: cannot be removed .*: remove it yours"):
        cache_command(["clear", "--root", str(tmp_path)])
    assert os.listdir(place) == [f"h{SUFFIX}"] and mine.read_text() == "mine"


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    with pytest.warns(UserWarning, match="keeps nothing new"):
        store.put("maps/a", some(1))
    store.put("maps/b", some(1))  # says so once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store.get("maps/a") is None


def test_a_bad_folder_that_a_variable_names_is_told_with_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for name, below in (("PATCHCORE_CACHE", ""), ("XDG_CACHE_HOME", "patchcore/features")):
        monkeypatch.delenv("PATCHCORE_CACHE", raising=False)
        monkeypatch.setenv(name, str(tmp_path / "file/below"))
        words = f"; the environment variable {name} names this folder$"
        folder = CacheConfig().folder()
        assert folder == tmp_path / "file/below" / below
        named = f"{tmp_path}/file is a file: name a folder{words}"
        with pytest.warns(UserWarning, match=f"the cache .* keeps nothing new: {named}"):
            Store(folder).put("maps/a", some(1))
        with pytest.warns(UserWarning, match=f"runs are not recorded in the cache .*: .*{words}"):
            Finished(folder / "runs").started("a1", tmp_path)
        with pytest.raises(InputError, match=f"/file: is a file, where .* belongs{words}"):
            cache_command([])
    with pytest.raises(InputError, match=f"data.root: cannot write to .*{words}"):
        GeneratedConfig(train_images=1).read()
    with pytest.raises(InputError, match=r"^--root: .*/file is a file: name the folder of a ca"):
        cache_command([f"--root={tmp_path}/file/below"])


def test_a_folder_below_a_link_to_nothing_is_told_with_the_links_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "disk"
    link.symlink_to("/mnt/not there")
    lost = f"{link}: this link leads to /mnt/not there, which cannot be read"
    words = re.escape(f"{lost} (No such file or directory); mend the link or remove it")
    folder = CacheConfig(root=str(link / "below")).folder()
    with pytest.warns(UserWarning, match=f"the cache .* keeps nothing new: {words}$"):
        Store(folder).put("maps/a", some(1))
    with pytest.warns(UserWarning, match=f"are not recorded in the cache .* again: {words}$"):
        Finished(folder / "runs").started("a1", tmp_path)
    with pytest.raises(InputError, match=f"^--root: {words}$"):
        cache_command([f"--root={folder}"])
    monkeypatch.setenv("PATCHCORE_CACHE", str(link))
    with pytest.raises(InputError, match=f"^{words}; the environment variable PATCHCORE_CACHE"):
        cache_command(["clear"])


def _hammer(root: Path, worker: int) -> int:
    """Read and write the same few entries as the others do; how many reads found the right one."""
    store = Store(root, limit=120_000)
    found = 0
    for i in range(150):
        seed = (i * 7 + worker) % 40
        tensors = store.get(f"maps/{seed}")
        if tensors is None:
            store.put(f"maps/{seed}", some(seed))
        else:
            assert same(tensors, some(seed))
            found += 1
    return found


def test_four_processes_at_once_neither_tear_nor_overfill(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=forkserver()) as pool:
        found = list(pool.map(_hammer, [tmp_path] * 4, range(4)))
    assert sum(found) > 0
    assert Store(tmp_path).size() <= 120_000 + 4 * (120_000 // 64 + 5000)
    assert not list((tmp_path / FOLDER).glob("*/.*"))


def test_readers_see_all_of_an_entry_or_none(tmp_path: Path) -> None:
    store, stop = Store(tmp_path), threading.Event()

    def rewrite() -> None:
        writer = Store(tmp_path)
        while not stop.is_set():
            writer.put("maps/a", some(1, 100_000))

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        end = time.monotonic() + 1
        seen = 0
        while time.monotonic() < end:
            tensors = store.get("maps/a")  # a torn one would warn, and warnings are errors
            seen += tensors is not None
    finally:
        stop.set()
        thread.join()
    assert seen


def test_digests_tell_apart_what_differs(tmp_path: Path) -> None:
    assert digest("a", [1, None]) == digest("a", [1, None])
    assert len({digest("ab"), digest("a", "b"), digest(b"ab"), digest(1), digest("1")}) == 5
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="cannot hold object"):
        digest(object())
    path = tmp_path / "image.png"
    path.write_bytes(b"one")
    one = file_digest(path)
    assert file_digest(path) == one
    path.write_bytes(b"three")
    assert file_digest(path) != one
    path.write_bytes(b"one")
    assert file_digest(path) == one
    with pytest.raises(InputError, match=r"missing\.png: cannot be read"):
        file_digest(tmp_path / "missing.png")
    x = torch.randn(4)
    digests = [tensors_digest([("a", y)]) for y in (x, x[:, None], x.double(), x + 1)]
    assert len({*digests, tensors_digest([("b", x)])}) == 5
    assert tensors_digest([("a", x)]) == digests[0]


def layer_maps(batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    last = [torch.randn(batch, 5, 4, 3, generator=generator), torch.randn(batch, 2, 2, 7)]
    return [x.permute(0, 3, 1, 2) for x in last]  # (B, C, h, w)


def test_layer_maps_come_back_bit_for_bit(tmp_path: Path) -> None:
    cache = MapCache(Store(tmp_path), "network")
    computed = layer_maps(2)
    kept = cache.put(["a", "b"], computed)
    assert all(torch.equal(x, y) for x, y in zip(kept, computed, strict=True))
    found = cache.get(["b", "a"])  # the batch's order does not matter, its size does
    assert found is not None
    for layer, x in enumerate(computed):
        assert torch.equal(found[0][layer], x[1].permute(1, 2, 0))
        assert torch.equal(found[1][layer], x[0].permute(1, 2, 0))
    assert cache.get(["a"]) is None and cache.get(["a", "c"]) is None
    assert MapCache(Store(tmp_path), "other").get(["a", "b"]) is None
    assert MapCache(Store(tmp_path), "network", Precision.bfloat16).get(["a", "b"]) is None


def test_an_entry_tells_how_long_its_content_took(tmp_path: Path) -> None:
    cache = MapCache(Store(tmp_path), "network")
    cache.put(["a", "b"], layer_maps(2), 3.0)
    found = cache.get_timed(["a", "b"])
    assert found is not None and sum(seconds for _, seconds in found) == 3.0
    for unknown in ({}, {"seconds": torch.zeros(2)}, {"seconds": torch.zeros(0)}):
        assert math.isnan(took({**unknown}))
    entry = {"x": torch.zeros(3), **timed(2.5)}
    assert took(entry) == 2.5 and list(entry) == ["x"]


def test_only_rounding_changes_results(tmp_path: Path) -> None:
    assert effective(CacheConfig(True, str(tmp_path), 3.0)) == {}
    assert effective(CacheConfig(precision=Precision.bfloat16)) == {}
    assert effective(CacheConfig(True, precision=Precision.bfloat16)) == {"precision": "bfloat16"}


def test_rounded_maps_are_the_same_for_the_run_that_computes_them(tmp_path: Path) -> None:
    cache = MapCache(Store(tmp_path), "network", Precision.bfloat16)
    computed = layer_maps(2)
    kept = cache.put(["a", "b"], computed)
    found = cache.get(["a", "b"])
    assert found is not None
    for layer, x in enumerate(computed):
        assert kept[layer].dtype == found[0][layer].dtype == torch.float32
        assert torch.equal(kept[layer][0].permute(1, 2, 0), found[0][layer])
        assert torch.equal(kept[layer], x.bfloat16().float())
    full = MapCache(Store(tmp_path / "full"), "network")
    full.put(["a", "b"], layer_maps(2))
    assert Store(tmp_path).size() < 0.8 * full.store.size()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PATCHCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CacheConfig().folder() == tmp_path / "patchcore" / "features"
    monkeypatch.setenv("PATCHCORE_CACHE", str(tmp_path / "mine"))
    assert CacheConfig().folder() == tmp_path / "mine"
    assert CacheConfig(root=str(tmp_path / "given")).folder() == tmp_path / "given"
    assert CacheConfig().open() is None
    store = CacheConfig(enabled=True, limit_gib=0.5).open()
    assert store is not None and store.limit == 2**29
    usual = CacheConfig(enabled=True).open()
    assert usual is not None and usual.limit == Store(tmp_path).limit == 20 * 2**30
    with pytest.raises(InputError, match=r"cache\.limit_gib must be above 0, got 0"):
        CacheConfig(limit_gib=0)


@pytest.mark.parametrize("action", ["show", "path", "clear"])
def test_the_command_tells_of_a_folder_whose_name_is_not_utf_8(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "caf\udce9" / FOLDER).mkdir(parents=True)
    cache_command([action, "--root", str(tmp_path / "caf\udce9")])
    assert f"{tmp_path}/caf\\xe9/{FOLDER}" in capsys.readouterr().out


def test_the_command_shows_and_clears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    for key in ("maps/a", "maps/b", "orders/c"):
        store.put(key, some(1))
    cache_command(["--root", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "layer maps of backbones" in shown and "2 entries" in shown and "3 entries" in shown
    cache_command(["path", "--root", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / FOLDER)
    cache_command(["clear", "--root", str(tmp_path)])
    shown = capsys.readouterr().out
    assert shown.endswith(f"KiB freed in {tmp_path / FOLDER}\n") and store.entries() == []
    (tmp_path / RECORDS).mkdir()
    (store.root / "maps/notes.txt").touch()
    cache_command(["clear", "--root", str(tmp_path)])
    assert capsys.readouterr().out == (
        f"0 B freed in {tmp_path / FOLDER}; left: 1 other file there, and the "
        f"records of finished runs in {tmp_path / RECORDS}\n"
    )


def test_an_entry_under_anothers_name_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("maps/a", "maps/b", "images/a"):
        store.put(key, some(1))  # even one that holds the same
    shutil.copy(store.root / f"maps/b{SUFFIX}", store.root / f"maps/a{SUFFIX}")
    shutil.copy(store.root / f"maps/b{SUFFIX}", store.root / f"images/a{SUFFIX}")
    for key in ("maps/a", "images/a"):
        with pytest.warns(
            UserWarning, match="is damaged or belongs to another entry; it is dropped"
        ):
            assert store.get(key) is None
        store.put(key, some(1))
        assert same(store.get(key), some(1))
    assert same(store.get("maps/b"), some(1))


@pytest.mark.parametrize(
    "maps",
    [
        {"0": torch.zeros(5, 4, 3)},  # a layer less
        {"0": torch.zeros(5, 4, 3), "1": torch.zeros(2, 2, 8)},  # other channels
        {"0": torch.zeros(5, 4, 3), "1": torch.zeros(2, 7)},
        {"0": torch.zeros(5, 4, 3), "1": torch.zeros(1, 2, 2, 7)},
        {"0": torch.zeros(5, 4, 3), "1": torch.zeros(2, 2, 7, dtype=torch.int32)},
        {"0": torch.zeros(4, 4, 3), "1": torch.zeros(2, 2, 7)},  # unlike the batch's first
        {"0": torch.zeros(5, 4, 3), "one": torch.zeros(2, 2, 7)},
        {},
    ],
)
def test_maps_of_a_wrong_shape_are_dropped(tmp_path: Path, maps: dict[str, Tensor]) -> None:
    cache = MapCache(Store(tmp_path), "network", channels=(3, 7))
    cache.put(["a", "b"], layer_maps(2))
    cache.store.put(cache.key("b", 2), maps)
    with pytest.warns(UserWarning, match="it is dropped and will be rebuilt"):
        assert cache.get(["a", "b"]) is None
    cache.put(["a", "b"], layer_maps(2))
    assert cache.get(["a", "b"]) is not None


def test_maps_of_no_positions_are_dropped(tmp_path: Path) -> None:
    cache = MapCache(Store(tmp_path), "network", channels=(3, 7))
    for image in ("a", "b"):
        empty = {"0": torch.zeros(0, 4, 3), "1": torch.zeros(2, 2, 7)}
        cache.store.put(cache.key(image, 2), empty)
    with pytest.warns(UserWarning, match="it is dropped and will be rebuilt"):
        assert cache.get(["a", "b"]) is None


def test_nothing_of_anybody_elses_is_touched(tmp_path: Path) -> None:
    others = [
        tmp_path / "models/my_resnet.safetensors",
        tmp_path / "maps/a.safetensors",
        tmp_path / f"maps/b{SUFFIX}",  # in a folder that is not ours
        tmp_path / "images/.x-1.part",
        tmp_path / FOLDER / "notes.txt",
        tmp_path / FOLDER / f"models/c{SUFFIX}",  # of no kind that we keep
        tmp_path / FOLDER / "maps/d.safetensors",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(50_000))
        os.utime(path, (1, 1))
    store = Store(tmp_path, limit=20_000)
    for i in range(20):
        store.put(f"maps/{i}", some(i))
    assert 0 < store.size() <= 20_000
    store.clear()
    assert store.entries() == []
    assert all(path.read_bytes() == bytes(50_000) for path in others)
    assert (store.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f")


def test_what_other_processes_write_is_counted(tmp_path: Path) -> None:
    ours, theirs = Store(tmp_path, limit=100_000), Store(tmp_path, limit=10**9)
    ours.put("maps/first", some(0))
    for i in range(30):
        theirs.put(f"maps/{i}", some(i))  # 4 kB each, unseen by us
    for i in range(1, 3):
        ours.put(f"orders/{i}", some(i))
    assert ours.size() <= 100_000


def test_a_cache_that_is_only_read_serves_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.put("maps/a", some(1))

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert same(store.get("maps/a"), some(1)) and same(store.get("maps/a"), some(1))


def test_an_entry_that_only_another_user_may_read_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.put("maps/a", some(1))
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == f"a{SUFFIX}":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert store.get("maps/a") is None
    for key, number in (("maps/a", 2), ("maps/b", 3)):
        store.put(key, some(number))
    assert same(store.get("maps/b"), some(3))
    monkeypatch.undo()
    assert same(store.get("maps/a"), some(2))


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put("maps/a", some(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="keeps nothing new: .*No space left on device") as told:
        store.put("maps/b", some(2))
        store.put("maps/c", some(3))
        Store(tmp_path).put("maps/d", some(4))  # of the next point of a multirun
    assert same(store.get("maps/a"), some(1))  # what is there is read all the same
    assert len(told) == 1 and [entry.key for entry in store.entries()] == ["maps/a"]
    assert not list(store.root.glob("*/.*"))


def test_files_are_on_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    replace_with(tmp_path / "metrics.json", b"{}")
    assert steps == ["file", "rename", "folder"]
    assert (tmp_path / "metrics.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_empty_name_of_the_cache_is_no_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHCORE_CACHE", "")
    with pytest.raises(InputError, match=r"^PATCHCORE_CACHE: is empty: name a folder"):
        CacheConfig().folder()
    with pytest.raises(InputError, match=r"^cache\.root: is empty: name a folder"):
        CacheConfig(root="").folder()
    assert CacheConfig(root=str(tmp_path)).folder() == tmp_path


@pytest.mark.parametrize("action", ["show", "clear"])
def test_a_cache_that_is_not_there_is_told(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"^--root: there is no folder .*nowhere$"):
        cache_command([action, f"--root={tmp_path / 'nowhere'}"])
    monkeypatch.setenv("PATCHCORE_CACHE", str(tmp_path))
    cache_command([action])
    assert capsys.readouterr().out == f"there is no cache in {tmp_path}\n"


def test_the_cache_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PATCHCORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"patchcore-{os.getuid()}"
    assert CacheConfig().folder() == own / ".cache/patchcore/features"
    assert CacheConfig(root="~/kept").folder() == own / "kept"


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        ([9, 9, 9], [0, 1, 2]),
        ([5.9, 5.9, 5.9], [0]),  # reading takes 4 s, writing 4 s: 4 + 4 / 2 = 6
        ([99, 6.1, 6.1], [0, 1, 2]),
        ([99, 5.9, 99], [0]),  # a GPU was kept waiting in two batches
        ([math.nan, math.nan, 9], [0, 1, 2]),
    ],
)
def test_a_selective_cache_keeps_maps_that_are_dear_to_compute(
    tmp_path: Path, seconds: list[float], kept: list[int]
) -> None:
    maps = torch.randn(3, 2, 3, 8, 8).unbind()  # three batches of two images
    images = [[f"{batch}a", f"{batch}b"] for batch in range(3)]

    def put(cache: MapCache) -> None:
        for own, batch, each in zip(images, maps, seconds, strict=True):
            with mock.patch("time.perf_counter", side_effect=count(0.0, 4.0)):
                found = cache.put(own, [batch], 2 * each)
            assert torch.equal(found[0], batch)

    cache = MapCache(Store(tmp_path), "network", channels=[3], selective=True)
    put(cache)
    assert [i for i in range(3) if cache.get(images[i])] == kept  # the first one was timed
    cache.store.clear()
    put(MapCache(Store(tmp_path), "network", channels=[3], selective=True))  # a later point
    assert [i for i in range(3) if cache.get(images[i])] == ([] if kept == [0] else kept)


def test_all_maps_are_kept_unless_a_cache_is_selective(tmp_path: Path) -> None:
    cache = MapCache(Store(tmp_path), "network", channels=[3])
    for image in "ab":
        cache.put([image], [torch.zeros(1, 3, 8, 8)], 1e-9)
    assert cache.get(["a"]) and cache.get(["b"])


def test_a_cache_that_may_not_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).put("maps/a", some(1))
    closed = tmp_path / FOLDER / "maps"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    for action in ("show", "clear"):
        with pytest.raises(InputError, match=f"^{closed}: cannot be read"):
            cache_command([action, "--root", str(tmp_path)])
