"""Whether a file is a checkpoint that a run can go on from, found out before anything is written.

The command line calls this for `--ckpt_path`. From Python, call `read_checkpoint` and `check_module` before
`trainer.fit(..., ckpt_path=path, weights_only=True)`, which by itself ends in an error of torch or Lightning.
"""

import pickle
import textwrap
import traceback
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

_NAMES_OF_LIGHTNING = ("best", "last", "hpc", "registry")


class CheckpointError(ValueError):
    """A file that no run can go on from."""


def read_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """Reads a Lightning checkpoint, and runs no code that it may hold.

    `torch.load` reads it with `weights_only=True`. The tensors have shapes but no data (they are on the device
    `meta`); that the data are as they were written is told by their checksums.

    Args:
        path: The file; names that Lightning looks up, such as `last`, and addresses are left to it.

    Returns:
        The checkpoint; None for what is left to Lightning, such as the folder of a sharded one.

    Raises:
        CheckpointError: If it is missing, cut off, damaged, not a checkpoint, or holds more than tensors and plain
            containers.
    """
    if str(path).split(":")[0] in _NAMES_OF_LIGHTNING or "://" in str(path) or Path(path).is_dir():
        return None
    if not Path(path).is_file():
        raise CheckpointError(f"ckpt_path={path}: no such file in {Path.cwd()}.")
    if not zipfile.is_zipfile(path):
        raise _unreadable(path, ValueError("no complete archive of torch.save"))
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        checkpoint = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _unreadable(path, error) from None
        raise CheckpointError(
            f"ckpt_path={path} holds Python objects beside tensors and plain containers. Reading them would run their"
            " code, so it is not read. Save it again with plain contents."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= set(checkpoint):
        held = sorted(map(str, checkpoint))[:4] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise CheckpointError(
            f"ckpt_path={path} is no checkpoint of a Lightning Trainer: it holds {held}. Pass a .ckpt file that"
            " ModelCheckpoint or trainer.save_checkpoint wrote."
        )
    return checkpoint


def check_module(path: str | Path, checkpoint: dict[str, Any], names: Collection[str], module: str) -> None:
    """Refuses the checkpoint of another module.

    Args:
        path: Where it lies.
        checkpoint: What `read_checkpoint` returned.
        names: Names in the state of the module that shall go on.
        module: Its class.

    Raises:
        CheckpointError: If they have no name in common.
    """
    saved = checkpoint["state_dict"]
    if names and saved and not set(names) & set(saved):
        raise CheckpointError(
            f"ckpt_path={path} is of another module: it holds {sorted(saved)[:3]} and more, {module} has"
            f" {sorted(names)[:3]}. Pass the configuration that it was trained with."
        )


def misfit(path: str | Path, error: BaseException) -> CheckpointError | None:
    """Returns what to say where a checkpoint's tensors did not go into module or optimizers; None for other errors.

    Args:
        path: Where the checkpoint lies.
        error: What ended the run.
    """
    calls = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    if not calls & {"load_model_state_dict", "load_optimizer_state_dict"}:  # methods of Lightning's strategies
        return None
    said = textwrap.shorten(str(error), 300, placeholder=" ...")
    return CheckpointError(
        f"ckpt_path={path} does not fit this module and its optimizers: {said} Pass the configuration that it was"
        " trained with."
    )


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return CheckpointError(
        f"ckpt_path={path} can't be read: it is cut off, damaged or no checkpoint ({first[0]}). Go on from an earlier"
        " one."
    )
