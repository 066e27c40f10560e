"""Makes a checkpoint of a private run fit to be published: ``python -m ...checkpoint in.ckpt out.ckpt``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, MutableMapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def strip_private_state(checkpoint: MutableMapping[str, Any] | str | Path) -> dict[str, Any]:
    """Leaves out the state of noise and samplers.

    **An unstripped checkpoint of a private run is secret**: with the noise's past and generator in it, whoever holds it
    can subtract the noise and undo the guarantee. A stripped one can be published. It serves for testing, predicting
    and fine-tuning; a private run can't be resumed from it.

    Args:
        checkpoint: A Lightning checkpoint, or any nested dictionary that holds the state of a private run, or the
            path of one.

    Returns:
        A copy without each part that carries a noise or a generator's state; the tensors that remain are shared.

    Raises:
        FileNotFoundError: If the path names no file.
        TypeError: If it does not hold a dictionary.
    """
    if isinstance(checkpoint, str | Path):
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"No checkpoint at {Path(checkpoint).absolute()}.")
        checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, MutableMapping):
        raise TypeError(f"A checkpoint is a dictionary, but this is a {type(checkpoint).__name__}.")
    return {} if _is_private(checkpoint) else dict(_without(checkpoint))


def _without(value: Any) -> Any:
    if isinstance(value, MutableMapping):
        kept = copy(value)
        for key, part in value.items():
            if _is_private(part):
                del kept[key]
            else:
                kept[key] = _without(part)
        return kept
    if type(value) in (list, tuple):
        return type(value)(_without(part) for part in value if not _is_private(part))
    return value


_RUN, _SAMPLER = {"fingerprint", "noise"}, {"num_examples", "global_batch_size", "seed"}


def _is_private(value: Any) -> bool:
    """The state of a private run, of a sampler, or of anything with a ``torch.Generator`` of its own."""
    if not isinstance(value, Mapping):
        return False
    generator = value.get("generator")
    drawn = isinstance(generator, Tensor) and generator.dtype == torch.uint8
    return drawn or set(value) >= _RUN or set(value) >= _SAMPLER


def main(arguments: list[str] | None = None) -> None:
    """Strips one file.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description="Removes the secret noise state from a checkpoint of a private run.")
    parser.add_argument("source", type=Path, help="checkpoint of a private run")
    parser.add_argument("target", type=Path, help="where the one to publish goes")
    options = parser.parse_args(arguments)
    torch.save(strip_private_state(options.source), options.target)


if __name__ == "__main__":
    main()
