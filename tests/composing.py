"""Hydra composes settings once for each choice of groups, not once for each test.

What comes of this package's own files and registries is the same every time; half of a tiny run's
time went there. Values (`key=value`) are applied, and mistakes found, by Hydra as ever.
"""

import copy
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from patchcore.commands.generations import NEXT
from patchcore.commands.own import OWN


@contextmanager
def remembered() -> Iterator[None]:
    """Let Hydra 1.3 remember lists of defaults and what they compose to."""
    if NEXT:  # composes elsewhere; slower is all that it is without this
        yield
        return
    lists: dict[str, Any] = {}
    composed: dict[str, bytes] = {}  # a pickle is read in a fifth of the time of a deep copy
    files: dict[str, Any] = {}
    create = config_loader_impl.create_defaults_list
    mapped = defaults_list._create_interpolation_map
    compose = ConfigLoaderImpl._compose_config_from_defaults_list
    read = CachingConfigRepository.load_config
    find = ConfigLoaderImpl._process_config_searchpath
    store = ConfigStore.store

    def create_defaults_list(
        repo: Any, config_name: str | None, overrides_list: Any, **more: Any
    ) -> Any:
        if not _own(repo):
            return create(repo, config_name, overrides_list, **more)
        asked = Overrides(repo=repo, overrides_list=overrides_list)
        groups = (asked.override_choices, asked.append_group_defaults, asked.deletions)
        key = repr((_sources(repo), config_name, groups, sorted(more.items())))
        if key not in lists:
            lists[key] = create(repo, config_name, overrides_list, **more)
        return replace(lists[key], config_overrides=asked.config_overrides)

    def interpolation_map(overrides: Any, defaults: Any, self_added: bool) -> Any:
        """Only where an entry names another's choice: it is a third of the work on a list."""
        if any(each.is_interpolation() for each in defaults):
            return mapped(overrides, defaults, self_added)
        return None

    def compose_from(self: Any, defaults: Any, repo: Any) -> Any:
        if not _own(repo):
            return compose(self, defaults, repo)
        fields = [(each, each.is_self, each.primary, each.override_key) for each in defaults]
        key = repr((_sources(repo), fields))
        if key not in composed:
            found = compose(self, defaults, repo)
            OmegaConf.clear_cache(found)  # of ${now:…} and ${unique:}, new for each run
            composed[key] = pickle.dumps(found)
        return pickle.loads(composed[key])

    def load_config(self: Any, config_path: str) -> Any:
        if not _own(self):
            return read(self, config_path)
        if config_path not in self.cache:
            key = repr((_sources(self), config_path))
            if key not in files:
                files[key] = read(self, config_path)
            found = self.cache[config_path] = copy.copy(files[key])
            if found is not None and found.is_schema_source:  # composing fills it
                found.config = copy.deepcopy(found.config)
        return self.cache[config_path]

    def search(self: Any, config_name: str | None, overrides: Any, repo: Any) -> None:
        asked = any(each.get_key_element() == "hydra.searchpath" for each in overrides)
        if asked or config_name != "config" or not _own(repo):  # our own names no further folders
            find(self, config_name, overrides, repo)

    def forget(self: Any, *arguments: Any, **more: Any) -> None:
        lists.clear()
        composed.clear()
        files.clear()
        store(self, *arguments, **more)

    def share(self: Any, delegate: Any) -> None:
        self.delegate = copy.copy(delegate)  # deeply in Hydra; sources hold nothing that changes
        self.cache = {}

    with ExitStack() as patches:
        for owner, name, own in (
            (config_loader_impl, "create_defaults_list", create_defaults_list),
            (defaults_list, "_create_interpolation_map", interpolation_map),
            (CachingConfigRepository, "__init__", share),
            (CachingConfigRepository, "load_config", load_config),
            (ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_from),
            (ConfigLoaderImpl, "_process_config_searchpath", search),
            (ConfigStore, "store", forget),
        ):
            patches.enter_context(mock.patch.object(owner, name, own))
        yield


def _sources(repo: Any) -> list[tuple[str, str, str]]:
    return [(each.scheme(), each.provider, each.path) for each in repo.get_sources()]


def _own(repo: Any) -> bool:
    """Whether all files are this package's or Hydra's: others change while tests run."""
    return all(scheme == "structured" or path in OWN for scheme, _, path in _sources(repo))
