"""Image settings of a run, completed: what is null follows from the network and the data set."""

from collections.abc import Mapping, Sequence
from typing import Any

from patchcore._record import InputRecord
from patchcore.data.sample import DataConfig
from patchcore.data.transforms import ImageConfig
from patchcore.errors import InputError


def complete_images(
    data: type[DataConfig],
    records: Sequence[InputRecord],
    run: Mapping[str, Any],
    members: Sequence[Mapping[str, Any] | None] = (),
) -> list[ImageConfig]:
    """Return the image settings of a run and those of each member of its ensemble.

    `size` and `view` are the data set's unless given, and `resize`, `stretch` and `crop` follow
    from them; `mean` and `std` are what the weights record. Each member gets its own network's;
    what is given for the run holds for the members that leave all of `image` out, and its size and
    view for those that leave these out. Completed settings are returned as they are.

    Args:
        data: Class of the run's data set.
        records: Records of the weights: the run's own, then each member's.
        run: Settings of the run's images as given: see `ImageConfig.given`.
        members: The same for each member; None for a member that leaves its images to the run.

    Raises:
        InputError: A setting is out of its range.
    """
    usual = {
        key: default if run.get(key) is None else run[key]
        for key, default in (("size", data.SIZE), ("view", data.VIEW))
    }
    every = [run, *(run if member is None else member for member in members)]
    completed = []
    for number, (each, record) in enumerate(zip(every, records, strict=True), start=-1):
        try:
            completed.append(_complete(each, record, usual))
        except InputError as error:
            if number < 0:
                raise
            raise InputError(f"ensemble.members[{number}].{error}") from None
    return completed


def _complete(given: Mapping[str, Any], record: InputRecord, usual: dict[str, Any]) -> ImageConfig:
    known: dict[str, Any] = {"mean": list(record.mean), "std": list(record.std)}
    own = any(given.get(key) is not None for key in usual)
    if given.get("tiles") is None or own:  # else images keep their own size
        known |= usual
    nulls = {key: value for key, value in known.items() if given.get(key) is None}
    return ImageConfig(**{**given, **nulls})
