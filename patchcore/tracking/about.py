"""A run as every tracker describes it, whatever started it: configuration, tags, notes, status."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchcore.errors import InputError, printable
from patchcore.report.words import flatten

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
"""Statuses of a run in the trackers."""
LONGEST_TAG = 64  # signs that W&B takes
LONGEST_REASON = 1000  # signs


@dataclass(frozen=True)
class About:
    """Description of a run.

    Attributes:
        settings: As in config.yaml, nested.
        folder: Of the run.
        provenance: As in provenance.json, with `choices` and `overrides` where a command started
            the run; empty for one that failed before its data were read.
        source: Folder where its results were computed; empty if that was here.
    """

    settings: Mapping[str, Any]
    folder: Path
    provenance: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def choices(self) -> dict[str, Any]:
        """Presets that were chosen, {group: choice}, without Hydra's own groups."""
        given = self.provenance.get("choices") or {}
        return {str(k): v for k, v in given.items() if str(k).partition("/")[0] != "hydra"}

    def config(self) -> dict[str, Any]:
        """Return what a tracker keeps as the configuration: one flat mapping of dotted keys.

        These are the resolved settings, the presets as `choices.GROUP`, and `run.folder`,
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
        """Return data set, category, networks and method, each once."""
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
        """Return the command that repeats the run, where a command started it, and its folder."""
        given = self.provenance.get("overrides")
        command = [f"patchcore train {shlex.join(given)}"] if given else []
        return "\n".join([*map(printable, command), printable(str(self.folder))])


def ended(error: BaseException | None) -> tuple[str, str]:
    """Return status and reason, in one line, of a run that ended with this error or without one.

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
