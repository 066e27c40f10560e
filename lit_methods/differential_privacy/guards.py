"""What would void the guarantee of a private run, refused with a sentence that says what to do instead."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lit_methods.errors import check_strategy


def check_trainer(trainer: Trainer, allow_limited_batches: bool = False) -> None:
    """Refuses Trainer flags and callbacks under which the planned guarantee does not hold.

    Args:
        trainer: The Trainer that is about to fit.
        allow_limited_batches: Accept ``limit_train_batches`` and ``overfit_batches``.

    Raises:
        MisconfigurationException: On fp16, gradient clipping, limits, reloading, finders, or strategies that shard.
    """
    check_strategy(trainer, "BandedSquareRootNoise takes per-sample gradients of whole ones")
    flags: Any = trainer  # set by Lightning's connectors, unseen by type checkers
    if str(trainer.precision).startswith("16"):
        raise MisconfigurationException(
            f"precision={trainer.precision!r} scales the loss, so that every example would be clipped at the wrong"
            " norm. Use precision='bf16-mixed' or '32-true'."
        )
    if flags.gradient_clip_val:
        raise MisconfigurationException(
            f"gradient_clip_val={flags.gradient_clip_val!r} has no effect on private gradients, which are clipped"
            " per example. Remove it and set max_grad_norm of the privacy callback."
        )
    limited = type(flags.limit_train_batches) is int or flags.limit_train_batches != 1.0 or flags.overfit_batches != 0.0
    if limited and not flags.fast_dev_run and not allow_limited_batches:
        raise MisconfigurationException(
            f"limit_train_batches={flags.limit_train_batches!r}, overfit_batches={flags.overfit_batches!r}: in"
            " the fixed order of private training this leaves the same examples out of every epoch. Train on a subset"
            " of the data set, or pass allow_limited_batches=True; the noise is then planned for the limited run."
        )
    if flags.reload_dataloaders_every_n_epochs:
        raise MisconfigurationException(
            f"reload_dataloaders_every_n_epochs={flags.reload_dataloaders_every_n_epochs!r} can change who takes"
            " part when. Set it to 0 for private training."
        )
    for callback in flags.callbacks:
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            raise MisconfigurationException(
                f"{type(callback).__name__} trains on the private data in steps that nobody accounts for. Run it"
                " without the privacy callback on public data, or choose the value by hand."
            )
        if isinstance(callback, GradientAccumulationScheduler) and callback.going_to_accumulate_grad_batches():
            raise MisconfigurationException(
                "GradientAccumulationScheduler changes the batch size during the run, which the noise was not planned"
                " for. Use Trainer(accumulate_grad_batches=...) with one value."
            )
    if trainer.world_size > 1 and flags._accelerator_connector.use_distributed_sampler:
        raise MisconfigurationException(
            "use_distributed_sampler=True lets Lightning shuffle the data anew in each epoch. Pass"
            " Trainer(use_distributed_sampler=False), --trainer.use_distributed_sampler=false on the command line: the"
            " privacy callback shares each batch out over the processes."
        )
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise MisconfigurationException(
            "max_epochs=-1 trains without end, but private training plans its noise for a known number of steps. Set"
            " max_epochs or max_steps."
        )


def check_loggers(trainer: Trainer) -> None:
    """Refuses loggers that upload checkpoints: with the noise's state in them, the noise can be subtracted.

    Args:
        trainer: The Trainer that is about to fit.

    Raises:
        MisconfigurationException: Where a logger uploads (``log_model`` of W&B, MLflow and others) what a
            ``ModelCheckpoint`` writes with ``save_weights_only=False``.
    """
    if all(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
        return
    for logger in trainer.loggers:
        uploads = getattr(logger, "_log_model", False)
        if uploads and not isinstance(logger, DummyLogger):
            raise MisconfigurationException(
                f"{type(logger).__name__}(log_model={uploads!r}) uploads checkpoints that hold the state of the privacy"
                " noise, with which the noise can be subtracted. Set log_model=False and upload what"
                " strip_private_state returns, or set ModelCheckpoint(save_weights_only=True)."
            )


def check_optimization(module: LightningModule, optimizers: list[Optimizer]) -> Optimizer:
    """Refuses anything but one automatically stepped optimizer over all trainable parameters.

    Args:
        module: The module that is about to be trained.
        optimizers: The optimizers that it configured.

    Returns:
        The only optimizer.

    Raises:
        MisconfigurationException: On manual optimization, several optimizers, or parameters outside the optimizer.
    """
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(module).__name__} optimizes manually, so that nobody knows which gradients are released. Use"
            " automatic optimization with one optimizer."
        )
    if len(optimizers) != 1:
        raise MisconfigurationException(
            f"{len(optimizers)} optimizers are configured, but private training accounts for exactly one. Put all"
            " parameters into one optimizer (parameter groups may differ in their learning rate)."
        )
    check_parameters(module, optimizers[0])
    return optimizers[0]


def check_parameters(module: nn.Module, optimizer: Optimizer) -> None:
    """Refuses trainable parameters that the optimizer does not hold, or holds besides the module's.

    Args:
        module: The module that is about to be trained.
        optimizer: Its only optimizer.

    Raises:
        MisconfigurationException: Naming them, or if there are none at all.
    """
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    outside = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    if outside:
        raise MisconfigurationException(
            f"The trainable parameters {outside[:5]} are in no optimizer and would get no noise. Freeze them with"
            " requires_grad_(False), or give them to the optimizer."
        )
    own = {id(p) for p in module.parameters()}
    foreign = [tuple(p.shape) for key, p in held.items() if p.requires_grad and key not in own]
    if foreign:
        raise MisconfigurationException(
            f"The optimizer holds parameters of shapes {foreign[:5]} that are not {type(module).__name__}'s, whose"
            " gradients nobody would clip. Make them part of the module, or leave them out."
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise MisconfigurationException(f"{type(module).__name__} has no trainable parameter. Thaw some.")


def check_layers(module: nn.Module) -> None:
    """Refuses layers and losses that have no per-sample gradients, naming the ones that stand in for them.

    Args:
        module: The module that is about to be trained.

    Raises:
        MisconfigurationException: On recurrent layers and attention of ``torch.nn`` with trained parameters, layers
            that hold a parameter twice, and mean losses with class weights.
    """
    for name, layer in module.named_modules():
        trained = any(p.requires_grad for p in layer.parameters())
        if trained and isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
            kind = "DPMultiheadAttention" if isinstance(layer, nn.MultiheadAttention) else f"DP{type(layer).__name__}"
            raise MisconfigurationException(
                f"{name or type(layer).__name__} is a {type(layer).__name__}, whose fused kernel has no per-sample"
                f" gradients. Use opacus.layers.{kind}, or freeze it."
            )
        own = [p for _, p in layer.named_parameters(recurse=False) if p.requires_grad]
        twice = len(list(layer.parameters())) < len(list(layer.named_parameters(remove_duplicate=False)))
        if own and twice:
            raise MisconfigurationException(
                f"{name or type(layer).__name__} ({type(layer).__name__}) holds a parameter under two names, for which"
                " Opacus has no per-sample gradients. Give the two a parameter each, or freeze them."
            )
        weighted = isinstance(layer, nn.CrossEntropyLoss | nn.NLLLoss) and layer.weight is not None
        if weighted and layer.reduction == "mean":
            raise MisconfigurationException(
                f"{name or type(layer).__name__} divides by the batch's class weights, so that each example changes the"
                " others' gradients. Use reduction='none', multiply by the weights and take the plain mean."
            )


def check_normalization(module: nn.Module) -> None:
    """Refuses layers that mix examples or keep statistics of them; cheap enough for every step.

    Args:
        module: The module in the mode that it trains in.

    Raises:
        MisconfigurationException: On BatchNorm in training mode, also frozen or without affine parameters, and on
            any normalization that updates running statistics.
    """
    for name, layer in module.named_modules():
        tracking = getattr(layer, "track_running_stats", False)
        if isinstance(layer, _BatchNorm) and (layer.training or not tracking):
            raise MisconfigurationException(
                f"{name or type(layer).__name__} is a {type(layer).__name__} that uses statistics of the batch: each"
                " example then changes the others' gradients, and running statistics leave without noise, frozen or"
                " not. Replace it with GroupNorm (opacus.validators.ModuleValidator.fix does so), or keep it in eval"
                " mode with fixed statistics."
            )
        if tracking and layer.training and not isinstance(layer, _BatchNorm):
            raise MisconfigurationException(
                f"{name or type(layer).__name__} ({type(layer).__name__}) updates running statistics of the private"
                " data without noise. Set track_running_stats=False, or use GroupNorm."
            )
