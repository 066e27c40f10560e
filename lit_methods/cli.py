"""The `lit-methods` command; what it runs is in `lit_methods.runner`."""

import sys
from typing import NoReturn

from lit_methods import __version__
from lit_methods.bundled import bundled_configs, find_configs

_HELP = """\
usage: lit-methods {{fit,validate,test,predict}} -c CONFIG [-c OVERLAY ...] [--KEY VALUE ...]

  fit        train, then print the final numbers and where everything lies
  validate   one pass over the validation set
  test       one pass over the test set
  predict    predictions for the predict set

  --ckpt_path FILE     resume from, or evaluate, a checkpoint; the YAML and the flags decide the settings
  --print_config       print the configuration that would run
  --help, --version    after a subcommand, --help lists every setting

CONFIG is a YAML file of yours or the name of a bundled one; later ones and flags win:
{configs}

example: lit-methods fit -c differential_privacy/digits.yaml --trainer.max_epochs 5
"""


def main(args: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: The arguments after the program's name; None reads them from `sys.argv`.

    Raises:
        SystemExit: With code 2 if the arguments do not parse, a config does not exist, a checkpoint can't be read, or
            this package refuses an argument or data, or does not find them. Other errors are raised as they are.
    """
    argv = sys.argv[1:] if args is None else args
    if argv[:1] == ["--version"]:
        print(f"lit-methods {__version__}")
        return
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(configs="\n".join(f"  {name}" for name in bundled_configs())))
        return
    try:
        argv = find_configs(argv)
    except FileNotFoundError as error:
        _end(error)
    from lit_methods.refusals import is_refusal  # here, because torch and Lightning take seconds to import
    from lit_methods.runner import run

    try:
        run(argv)
    except Exception as error:
        if not is_refusal(error):
            raise
        _end(error)


def _end(error: Exception) -> NoReturn:
    print(f"lit-methods: {error}", file=sys.stderr)
    raise SystemExit(2) from None
