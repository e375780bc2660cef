"""Description of a run that is the same in every tracker: configuration, tags, notes, status."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchcore.errors import InputError, printable
from patchcore.report.words import flatten

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
"""Statuses of a run in the trackers."""
LONGEST_TAG = 64  # characters that W&B accepts
LONGEST_REASON = 1000  # characters


@dataclass(frozen=True)
class About:
    """Description of a run.

    Attributes:
        settings: Settings as in config.yaml, nested.
        folder: Folder of the run.
        provenance: Contents of provenance.json, with `choices`, `overrides` and perhaps `options`
            if a command started the run; without the rest for a run that failed before its data
            were read.
        source: Folder where the results were computed; empty if it is `folder` itself.
    """

    settings: Mapping[str, Any]
    folder: Path
    provenance: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def choices(self) -> dict[str, Any]:
        """Chosen presets, {group: choice}, without Hydra's own groups."""
        given = self.provenance.get("choices") or {}
        return {str(k): v for k, v in given.items() if str(k).partition("/")[0] != "hydra"}

    def config(self) -> dict[str, Any]:
        """Return the configuration for a tracker: one flat mapping with dotted keys.

        It holds the resolved settings, the presets as `choices.GROUP`, and `run.folder`,
        `run.fingerprint` and `run.resumed_from`.
        """
        origin = {
            "run.folder": printable(str(self.folder)),
            "run.fingerprint": self.provenance.get("fingerprint", ""),
            "run.resumed_from": printable(self.source),
        }
        choices = {f"choices.{group}": choice for group, choice in self.choices.items()}
        return {**flatten(dict(self.settings)), **choices, **origin}

    def tags(self) -> list[str]:
        """Return the names of data set, category, networks and method, without repetition."""
        data, choices = self.settings.get("data") or {}, self.choices
        networks = [self.settings.get("backbone")]
        members = (self.settings.get("ensemble") or {}).get("members") or []
        if members:
            networks = [member.get("backbone") or networks[0] for member in members]
        found = [
            choices.get("data"),
            data.get("category") if isinstance(data, Mapping) else None,
            *(each.get("name") for each in networks if isinstance(each, Mapping)),
            choices.get("method"),
        ]
        return list(dict.fromkeys(printable(str(each))[:LONGEST_TAG] for each in found if each))

    def notes(self) -> str:
        """Return the command that repeats the run, if it is known, and the run's folder."""
        given = [x for key in ("options", "overrides") for x in self.provenance.get(key) or []]
        command = [f"patchcore train {shlex.join(given)}"] if given else []
        return "\n".join([*map(printable, command), printable(str(self.folder))])


def ended(error: BaseException | None) -> tuple[str, str]:
    """Return the status of a run that ended with `error` or without one, and the reason in a line.

    >>> ended(InputError("data.root: there is no such folder")), ended(None)
    (('failed', 'data.root: there is no such folder'), ('finished', ''))
    """
    if error is None:
        return FINISHED, ""
    told = " ".join(str(error).split())
    if not isinstance(error, InputError | OSError) and isinstance(error, Exception):
        told = f"{type(error).__name__}: {told}"
    status = FAILED if isinstance(error, Exception) else INTERRUPTED
    return status, printable(told)[:LONGEST_REASON] or type(error).__name__
