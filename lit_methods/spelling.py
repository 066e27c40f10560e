"""What the parser of the command line does not know, with the names that it may have been."""

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pkgutil import resolve_name

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

_SETTINGS = ("config", "print_config", "seed_everything", "model", "data", "ckpt_path", "weights_only")
_BASES = {
    "model": LightningModule,
    "data": LightningDataModule,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
_SHELVES = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torch.nn", "torch.optim")
_MOST = 16  # names that are all shown where none is near
# Of jsonargparse's accounts of every type that it tried, the first that names something; the base class of callbacks
# is tried for each dict.
_UNKNOWN = re.compile(
    r"given class_path '(?P<owner>(?!lightning\.Callback')[^']+)':\s+Option '(?P<option>[^']+)' is not accepted"
    r"|module '(?P<holder>[^']+)' has no attribute '(?P<attribute>[^']+)'"
    r"|No module named '(?P<module>[^']+)'"
    r"|Expected a dot import path string: (?P<name>\S+)"
)


def explain(message: str) -> str:
    """Returns a message of jsonargparse, or what it comes down to if it is about an unknown name.

    Args:
        message: What the parser says.
    """
    if found := re.search(r"unrecognized arguments: (--)([^\s=+]+)|does not accept option ()'([^']+)'", message):
        dashes, name = found[1] or "", found[2] or found[4]
        settings = (*_SETTINGS, *(f"trainer.{setting}" for setting in inspect.signature(Trainer).parameters))
        return message + _nearest(dashes + name, [dashes + setting for setting in settings])
    found = _UNKNOWN.search(message)
    if found is None:
        return message
    keys = re.findall(r'Parser key "([^"]+)"', message[: found.start()])
    where = f"--{keys[0]}: " if keys else ""
    if option := found["option"]:
        parameters = inspect.signature(resolve_name(found["owner"])).parameters
        return f"{where}{found['owner']} takes no {option}" + _nearest(option, parameters)
    if attribute := found["attribute"]:
        return f"{where}{found['holder']} has no {attribute}" + _nearest(attribute, dir(resolve_name(found["holder"])))
    if module := found["module"]:
        return f"{where}no module {module} is found; `python -m lit_methods` also looks in the current folder"
    said = f"no class is known as {found['name']}; one of yours needs its import path, such as project.models.Net"
    return where + said + _nearest(found["name"], _classes(_BASES.get(keys[-1], object) if keys else object))


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    if near := get_close_matches(name, known):
        return f"\nNearest: {', '.join(near)}"
    return f"\nKnown: {', '.join(known)}" if 0 < len(known) <= _MOST else ""


def _classes(base: type) -> set[str]:
    """Public names of the subclasses that are imported, of this package and of what its configs take."""
    shelves = [module for name, module in sys.modules.items() if name in _SHELVES or name.startswith("lit_methods")]
    return {
        thing.__name__
        for shelf in shelves
        for name, thing in vars(shelf).items()
        if inspect.isclass(thing) and issubclass(thing, base) and thing is not base and not name.startswith("_")
    }
