"""Server and client of the run that a federated config of lit-methods describes."""

import shlex
from inspect import isclass

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import lit_methods.datamodules  # noqa: F401  makes short class names known to jsonargparse
from lit_methods import federated
from lit_methods.bundled import find_config
from lit_methods.federated.flower import RunConfig, client_app, fit_on_flower
from lit_methods.report import closing_report

_FLAGS = {
    "rounds": "trainer.max_epochs",
    "strategy": "model.strategy",
    "participation": "model.participation",
    "lr": "model.optimizer.lr",
    "momentum": "model.optimizer.momentum",
    "clients": "data.num_clients",
    "p": "data.partition.p",
    "alpha": "data.partition.alpha",
}
_DEFAULTS = [
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
    "--trainer.logger.save_dir=runs",
    "--trainer.enable_progress_bar=false",
    "--model.optimizer=torch.optim.SGD",
]


class _Parts(LightningCLI):
    """Model, data and Trainer of a config; runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the given arguments without Lightning's warning that `sys.argv` has some too."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # `parts` passes a list


def parts(run_config: RunConfig) -> _Parts:
    """Makes what the run config says."""
    name = str(run_config["strategy"])
    known = [
        n
        for n, c in vars(federated).items()
        if isclass(c) and issubclass(c, federated.Strategy) and c is not federated.Strategy
    ]
    if "." not in name and name not in known:
        raise ValueError(
            f"strategy={name!r} is none of {sorted(known)}; name one of them, or your class by its import path."
        )
    flags = [f"--{flag}={run_config[key]}" for key, flag in _FLAGS.items()]
    return _Parts(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False},
        args=[
            "-c",
            find_config(str(run_config["config"])),
            *_DEFAULTS,
            *flags,
            *shlex.split(str(run_config["options"])),
        ],
    )


def build(run_config: RunConfig) -> tuple[federated.FederatedModule, LightningDataModule]:
    """The module and its data, alike on the server and on every node."""
    made = parts(run_config)
    return made.model, made.datamodule


def main(grid: Grid, context: Context) -> None:
    """Fits on the nodes, then prints the final numbers and where everything lies."""
    made = parts(context.run_config)
    fit_on_flower(made.trainer, made.model, made.datamodule, grid)
    print(closing_report(made.trainer))


client = client_app(build)
server = ServerApp()
server.main()(main)
