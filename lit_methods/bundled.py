"""The configuration files that travel inside the wheel, found by name."""

from importlib.resources import files
from pathlib import Path, PurePosixPath

_OPTIONS = ("-c", "--config")
_SWEEPS = "sweeps"  # files for `wandb sweep`, which no subcommand takes


def bundled_root() -> Path:
    """Returns the folder that holds the bundled configs."""
    return Path(str(files("lit_methods") / "configs"))


def bundled_configs() -> list[str]:
    """Returns the names of all bundled configs, such as `differential_privacy/digits.yaml`, sorted."""
    root = bundled_root()
    found = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.as_posix() for path in found if path.parts[0] != _SWEEPS)


def find_config(name: str) -> str:
    """Returns the path of a config file: the user's own if it exists, else the bundled one of that name.

    Args:
        name: A path, or the name of a bundled config with or without a leading `configs/`.

    Raises:
        FileNotFoundError: If neither exists; the message lists the bundled configs.
    """
    if Path(name).is_file():
        return name
    key = PurePosixPath(name.replace("\\", "/")).as_posix().removeprefix("configs/")
    if key in bundled_configs():
        return str(bundled_root() / key)
    listing = "\n".join(f"  {config}" for config in bundled_configs())
    raise FileNotFoundError(
        f"--config {name}: no such file in {Path.cwd()}, and no bundled config has that name. Bundled are:\n{listing}"
    )


def find_configs(args: list[str]) -> list[str]:
    """Replaces the value of each `-c` and `--config` in a command line by the path of the file it names.

    Raises:
        FileNotFoundError: If a named config does not exist.
    """
    found: list[str] = []
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if position and args[position - 1] in _OPTIONS:
            found.append(find_config(arg))
        elif option in _OPTIONS and equals:
            found.append(f"{option}={find_config(value)}")
        else:
            found.append(arg)
    return found
