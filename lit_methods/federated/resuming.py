"""The settings that a run keeps when it is resumed."""

from collections.abc import Mapping

from lit_methods.federated.strategies import Strategy

Setting = bool | int | float | str | None


def strategy_settings(strategy: Strategy) -> dict[str, Setting]:
    """The class of a strategy, and its public attributes that are numbers, strings, bools or None.

    Read them from a new strategy: what it counts in a run is no setting.
    """
    settings: dict[str, Setting] = {"strategy": type(strategy).__name__}
    for name, value in vars(strategy).items():
        if not name.startswith("_") and isinstance(value, Setting):
            settings[f"strategy.{name}"] = _plain(value)
    return settings


def check_same_settings(saved: Mapping[str, Setting], present: Mapping[str, Setting]) -> None:
    """Refuses to resume under other settings; those that one side doesn't know are passed over.

    Args:
        saved: Settings of the checkpoint's run, by argument.
        present: Settings of the module that shall go on.

    Raises:
        ValueError: If they differ.
    """
    changed = [name for name in present if name in saved and saved[name] != present[name]]
    if "strategy" in changed:  # the settings of another class say nothing more
        changed = [name for name in changed if not name.startswith("strategy.")]
    if changed:
        former, given = (", ".join(f"{name}={of[name]!r}" for name in changed) for of in (saved, present))
        raise ValueError(
            f"The checkpoint's run has {former} and can't go on with {given}, which its models and draws do not belong "
            f"to. Pass {former}, or begin a new run without ckpt_path."
        )


def _plain(value: Setting) -> Setting:
    # A subclass, such as numpy's float64, would make a checkpoint that torch.load refuses.
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), None)
