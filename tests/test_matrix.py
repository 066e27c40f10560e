"""No public class and no bundled config escapes the battery."""

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import lit_methods
from lit_methods.bundled import bundled_configs
from tests.entries.toys import Entry
from tests.matrix import DATAMODULES, ENTRIES, FEDERATIONS

OVERLAYS = ("trainer/", "logger/")


def _public(*bases: type) -> set[str]:
    rooms = [import_module(m.name) for m in pkgutil.iter_modules(lit_methods.__path__, "lit_methods.") if m.ispkg]
    named = [getattr(home, name) for home in (lit_methods, *rooms) for name in home.__all__]
    classes = {thing for thing in named if inspect.isclass(thing) and not inspect.isabstract(thing)}
    return {c.__name__ for c in classes if issubclass(c, bases)}


def test_each_public_module_and_callback_has_an_entry() -> None:
    assert {entry.name for entry in ENTRIES} == _public(LightningModule, Callback)
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)


def test_each_public_datamodule_is_in_the_matrix() -> None:
    assert set(DATAMODULES) | set(FEDERATIONS) == _public(LightningDataModule)


def test_each_bundled_config_belongs_to_an_entry_and_exists() -> None:
    shown = {config for entry in ENTRIES for config in entry.configs}
    assert {config for config in bundled_configs() if not config.startswith(OVERLAYS)} == shown


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_entry_shows_what_it_is_named_for(entry: Entry, tmp_path: Path) -> None:
    parts = entry.make(tmp_path, 1)
    assert entry.name in {type(part).__name__ for part in (parts.module, *parts.callbacks)}
    assert all(entry.skips.values())


def test_unknown_promise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"skips=\['fp8'\] of Thing are none of"):
        Entry("Thing", lambda folder, processes: None, skips={"fp8": "no reason"})
