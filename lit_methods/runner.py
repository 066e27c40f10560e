"""LightningCLI as this project sets it up."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

import lit_methods
from lit_methods.checkpoint import check_module, misfit, read_checkpoint
from lit_methods.errors import IMPORT_HINT
from lit_methods.logging import log_folder
from lit_methods.refusals import is_refusal
from lit_methods.report import closing_report
from lit_methods.spelling import explain

for _public in lit_methods.__all__:
    getattr(lit_methods, _public)  # imports it, so that jsonargparse knows its short name

_SAVE_DIR = "runs"
_SETTINGS = {"config.yaml", "hparams.yaml"}  # what a log folder holds before anything is logged
_CSV_LOGGER = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": _SAVE_DIR, "name": ""},
}


class ConfigForWandb(SaveConfigCallback):
    """Saves the configuration as a file and, so that runs can be compared by their settings, in W&B's config."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sends the whole configuration to W&B, on rank zero."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(json.loads(self.parser.dump(self.config, skip_none=False, format="json")))


class Parser(LightningArgumentParser):
    """Ends with the error alone: the usage of some fifty settings would push it off the screen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes flags by their whole names alone: an abbreviation is a slip more often than meant."""
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and where help is, and exits with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        hint = f"\n{IMPORT_HINT}" if "pytorch_lightning" in sys.modules and "not correspond" in message else ""
        self.exit(2, f"lit-methods: {explain(message)}{hint}\nEvery setting: lit-methods fit --help\n")


class Runner(LightningCLI):
    """Any LightningModule with any LightningDataModule, a CSV log, and a closing report.

    Args:
        args: Subcommand and flags, config paths already resolved.
    """

    def __init__(self, args: list[str]) -> None:
        self._checkpoint: dict[str, Any] | None = None
        self._ckpt_path: str | None = None
        self._new_folders: list[Path] = []
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                parser_class=Parser,
                parser_kwargs={"prog": "lit-methods"},
                save_config_callback=ConfigForWandb,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={"logger": _CSV_LOGGER},
                seed_everything_default=0,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=args,
                auto_configure_optimizers=False,
            )
        except Exception as error:
            refusal = None if self._ckpt_path is None else misfit(self._ckpt_path, error)
            if refusal is not None or is_refusal(error):
                _remove_unused(self._new_folders)
            if refusal is not None:
                raise refusal from error
            raise

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the given arguments without Lightning's warning that `sys.argv` has some too."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # `run` passes a list

    def before_instantiate_classes(self) -> None:
        """Reads the checkpoint, and puts the log where `--trainer.default_root_dir` points unless a logger says so."""
        self._ckpt_path = self.config[self.subcommand].get("ckpt_path")
        if self._ckpt_path is not None:
            self._checkpoint = read_checkpoint(self._ckpt_path)
            if self.config[self.subcommand].weights_only is None:  # Lightning would run the code of a remote pickle
                self.config[self.subcommand].weights_only = True
        trainer = self.config[self.subcommand].trainer
        logger = trainer.logger
        ours = getattr(logger, "class_path", None) == _CSV_LOGGER["class_path"]
        if trainer.default_root_dir is not None and ours and logger.init_args.save_dir == _SAVE_DIR:
            logger.init_args.save_dir = str(trainer.default_root_dir)

    def instantiate_classes(self) -> None:
        """Makes model, data and Trainer, and refuses the checkpoint of another model."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            refusal = _refusal(error)
            raise refusal from refusal.__cause__
        if self.trainer.is_global_zero and (folder := log_folder(self.trainer)) is not None:
            self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        if self._checkpoint is not None and self._ckpt_path is not None:
            check_module(self._ckpt_path, self._checkpoint, self.model.state_dict(), type(self.model).__name__)
            self._checkpoint = None

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration alone: Lightning would let the checkpoint overwrite YAML and flags."""

    def after_fit(self) -> None:
        """Prints the final numbers and where everything lies."""
        if self.trainer.is_global_zero:
            print(closing_report(self.trainer))


def _refusal(error: BaseException) -> BaseException:
    """What a constructor raised, out of jsonargparse's accounts of every type that it tried with it."""
    cause = error
    while str(cause).startswith("Does not validate against any of the Union") and cause.__cause__ is not None:
        cause = cause.__cause__
    return error if str(cause).startswith("Expected a") else cause


def _remove_unused(folders: list[Path]) -> None:
    """Removes folders that a run has made, innermost first, as far as they hold its settings alone."""
    for folder in folders:
        if folder.is_dir() and {path.name for path in folder.rglob("*")} <= _SETTINGS:
            shutil.rmtree(folder)


def run(args: list[str]) -> Runner:
    """Parses a command line and runs its subcommand.

    Args:
        args: Subcommand and flags, config paths already resolved.
    """
    try:
        return Runner(args)
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()
