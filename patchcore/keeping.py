"""Choice of the runs that keep their model as an artifact: all, or the best of a multirun.

With `artifact=best` each point decides when it finishes. It keeps its model if it is better than
every point in the multirun's folder that holds one. It then deletes, under a lock, all artifacts
but the best. So one model is kept at any time (for a moment one per process), in whatever order
points finish, and an interrupted multirun has the model of the best point so far. A resumed point
that had finished without its model is computed again only if it beats the point that holds one.

The folder of a multirun may hold other runs and multiruns. So each point notes in provenance.json
which multirun it is a point of, and where; no other artifact is compared or deleted. A moved or
copied folder has the note of another place. An artifact that was changed after its run or is of
another run stays, too, and so does one that `artifact=true` saved before the multirun was started
with `artifact=best`.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from patchcore import sealed
from patchcore.checksums import altered
from patchcore.costs import fresh
from patchcore.errors import InputError
from patchcore.metrics import METRICS, Objective
from patchcore.resume import read_provenance
from patchcore.runfolder import DESCRIPTION, FOLDER, TRANSIENT, of_another_run
from patchcore.runfolder import METRICS as RECORD
from patchcore.settings import Choice, Settings, setting
from patchcore.writing import make_writable, remove_folder
from patchcore.yaml_text import settings_in

CROPS = "crops.safetensors"
"""File of an artifact with pictures of the memory's patches, if `crops` asked for them."""
POINT_OF = "best_of"
"""Entry of provenance.json: the multirun whose best point keeps its model, and the point."""
_ASKED = "asked"
"""Key of this entry: whether the model was saved at the user's request, whatever its rank."""
_LOCK = ".best.lock"


class Keep(Choice):
    """Runs that leave their model as an artifact."""

    none = "none"
    all = "all"
    best = "best"  # of a multirun, by the first of `objectives`; ties go to the earlier point


@dataclass
class ArtifactConfig(Settings):
    """Settings of the artifact that a run leaves, which `patchcore.load` reads."""

    GROUP: ClassVar[str] = "artifact"

    keep: Keep = setting(
        Keep.none, "none, all, or best (only the best point of a multirun)", effect=False
    )
    weights: bool = setting(
        False,
        "save the networks' weights in the artifact, so that it can be loaded without internet",
        effect=False,
    )

    crops: bool = setting(
        False,
        "save a small picture of every patch in the memory bank, for predict --explain and serve",
        effect=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("weights", "crops"):
            if getattr(self, key) and self.keep is Keep.none:
                raise InputError(
                    f"artifact.{key} has no effect on its own: add artifact=true or best"
                )

    def files(self, members: int) -> list[str]:
        """Return the main files of such an artifact, relative to the run's folder.

        Args:
            members: Number of networks in the model.
        """
        names = [DESCRIPTION]
        if self.weights:
            names += weights_files(members)
        if self.crops:
            names.append(CROPS)
        return [f"{FOLDER}/{name}" for name in names]


@dataclass(frozen=True)
class Contest:
    """A multirun whose best point keeps its model.

    Attributes:
        folder: Folder of the multirun.
        objective: Metric or cost that ranks the points.
    """

    folder: Path
    objective: Objective

    def won(
        self, point: Path, record: Mapping[str, Any], warm: Sequence[str], costs: Any = None
    ) -> bool:
        """Return whether `point` ranks before all other points that hold an artifact.

        Of points with equal values, the earlier one ranks first. A point whose objective is
        undefined never wins.

        Args:
            point: Folder of the point.
            record: Contents of its metrics.json.
            warm: Its stages that read the cache.
            costs: See `patchcore.costs.fresh`.
        """
        own = self._rank(point, record, warm, costs)
        others = [each for each in self.holders() if each.resolve() != point.resolve()]
        return own is not None and all(own < self._rank_of(each) for each in others)

    def settle(self) -> None:
        """Delete the artifacts of all points but the best, and but those that `stays` names."""
        with FileLock(self.folder / _LOCK):
            for point in self.ranked()[1:]:
                if stays(point):
                    continue
                make_writable(point / FOLDER)
                # The description first: a folder without it is not taken for an artifact.
                (point / FOLDER / DESCRIPTION).unlink(missing_ok=True)
                remove_folder(point / FOLDER)

    def holders(self) -> list[Path]:
        """Return the folders of finished points that hold an artifact."""
        return holders(self.folder)

    def ranked(self) -> list[Path]:
        """Return the same, the best first."""
        return sorted(self.holders(), key=self._rank_of)

    def _rank_of(self, point: Path) -> tuple[float, list[tuple[int, str]]]:
        """Rank of a finished point; a point that cannot be read comes last."""
        try:
            if altered(point, besides=["config.yaml"]):
                raise ValueError(point)
            record = json.loads((point / RECORD).read_text())
            provenance = read_provenance(point)
            rank = self._rank(point, record, provenance.get("warm", []), provenance.get("costs"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            rank = None
        return rank or (math.inf, numerically(point))

    def _rank(
        self, point: Path, record: Mapping[str, Any], warm: Sequence[str], costs: Any
    ) -> tuple[float, list[tuple[int, str]]] | None:
        """Key that sorts better points first, then earlier ones; None if the value is undefined."""
        value = objectives(record, [self.objective], warm, costs)
        if not isinstance(value, float):
            return None
        high = METRICS[self.objective.value].better == "high"
        return -value if high else value, numerically(point.resolve())


class Keeper:
    """Decides whether a run keeps its model.

    Args:
        config: Settings of the artifact.
        objective: First of the run's objectives.
        point: Folder of the run.
        multirun: Folder of its multirun, if it belongs to one.

    Attributes:
        contest: Contest with the other points, if only the best keeps its model; else None.
    """

    def __init__(
        self, config: ArtifactConfig, objective: Objective, point: Path, multirun: Path | None
    ) -> None:
        self.keep, self.point, self.multirun = config.keep, point, multirun
        contested = multirun if config.keep is Keep.best else None
        self.contest = None if contested is None else Contest(contested, objective)

    def wants(self, record: Mapping[str, Any], warm: Sequence[str] = (), costs: Any = None) -> bool:
        """Return whether the run keeps its model, by its metrics.json; see `Contest.won`."""
        if self.contest is not None:
            return self.contest.won(self.point, record, warm, costs)
        return self.keep is not Keep.none  # a single run counts as the best

    def noted(self, provenance: Mapping[str, Any], asked: bool = False) -> dict[str, Any]:
        """Return the contents of provenance.json with the entry `POINT_OF` as it is for this run.

        A run outside of a contest has no such entry.

        Args:
            provenance: Contents without the entry, or with that of an earlier start.
            asked: Whether its folder holds a model that was saved at the user's request.
        """
        others = {key: value for key, value in provenance.items() if key != POINT_OF}
        if self.contest is None:
            return others
        entry: dict[str, Any] = {**_entry(self.contest.folder, self.point)}
        if asked or _is_asked(provenance):
            entry[_ASKED] = True
        return {**others, POINT_OF: entry}

    def settle(self) -> None:
        """Call `Contest.settle`, once the run's results are in their final place."""
        if self.contest is not None:
            self.contest.settle()


def weights_files(members: int) -> list[str]:
    """Return the names of an artifact's weights files, one for each of `members` networks.

    >>> weights_files(1), weights_files(2)
    (['weights.safetensors'], ['weights_1.safetensors', 'weights_2.safetensors'])
    """
    if members == 1:
        return ["weights.safetensors"]
    return [f"weights_{number}.safetensors" for number in range(1, members + 1)]


def holders(multirun: Path) -> list[Path]:
    """Return a multirun's finished points that hold an artifact, as folders in their order.

    These are the points that contend for the best: see `POINT_OF`.
    """
    found = (mark.parents[1] for mark in multirun.rglob(f"{FOLDER}/{DESCRIPTION}"))
    ended = (x for x in found if x.name not in TRANSIENT and (x / RECORD).is_file())
    own = (x for x in ended if _point_of(read_provenance(x)) == _entry(multirun, x))
    return sorted(own, key=numerically)


def saved_on_request(folder: Path) -> bool:
    """Return whether the model in a finished run's folder was not saved as a multirun's best."""
    settings = settings_in(folder).get("artifact")
    asked = isinstance(settings, dict) and settings.get("keep") == Keep.all.value
    return (folder / FOLDER / DESCRIPTION).is_file() and (
        asked or _is_asked(read_provenance(folder))
    )


def stays(point: Path) -> str:
    """Return why a point keeps its artifact although others are better; empty if it does not."""
    try:
        found = sealed.read_description(point / FOLDER / DESCRIPTION, sys.maxsize)  # of any format
        unchanged = len(found["lineage"]) == 1
    except (InputError, KeyError, TypeError):  # what cannot be read may have been changed
        unchanged = False
    if not unchanged:
        return "it was changed after its run"
    if of_another_run(found, point):
        return "it is the model of another run"
    return "it was saved by artifact=true" if _is_asked(read_provenance(point)) else ""


def _point_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    entry = provenance.get(POINT_OF)
    return {k: v for k, v in entry.items() if k != _ASKED} if isinstance(entry, dict) else {}


def _is_asked(provenance: Mapping[str, Any]) -> bool:
    entry = provenance.get(POINT_OF)
    return isinstance(entry, dict) and entry.get(_ASKED) is True


def _entry(multirun: Path, point: Path) -> dict[str, str]:
    return {"multirun": str(multirun.resolve()), "point": str(point.resolve())}


def objectives(
    record: Mapping[str, Any],
    wanted: list[Objective],
    warm: Sequence[str] = (),
    costs: Any = None,
) -> float | tuple[float, ...] | None:
    """Return the objectives of a finished run, or None if any of them is undefined.

    It is None and not NaN, because sweepers stop at NaN. Seconds are those that the stages take
    when nothing is read from the cache (`patchcore.costs`), and undefined if these are not known.

    Args:
        record: Contents of metrics.json.
        wanted: Objectives in the sweeper's order.
        warm: Names of the stages that read the cache.
        costs: See `patchcore.costs.fresh`; None for a run of an earlier version.
    """
    found = {**record, "seconds": fresh(costs), "score_seconds": fresh(costs, "score", False)}
    if costs is None:
        spent = {key: value for key, value in record["seconds"].items() if value is not None}
        found["seconds"] = None if warm else sum(spent.values())
        found["score_seconds"] = None if "score" in warm else spent.get("score")
    values = [found.get(objective.value) for objective in wanted]
    numbers = [math.nan if value is None else float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        return None
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def numerically(path: Path) -> list[tuple[int, str]]:
    """Return a sort key by which point 2 comes before point 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]
