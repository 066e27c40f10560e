"""Which errors are refusals of ours, whose sentence says all, and which need their traceback."""

import dis
import sys

from lightning.fabric.utilities.exceptions import MisconfigurationException

_TYPES = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)
_OURS = "lit_methods"
_CARRIERS = {_OURS, "lightning", "torch", "jsonargparse", *sys.stdlib_module_names}
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_refusal(error: BaseException) -> bool:
    """Whether a `raise` of this package made an error, with nobody else's code between it and the command line.

    What fails inside this package without a `raise` is a bug, and a wrong argument that a module of the user's passed
    on has to be found: both need their traceback.

    Args:
        error: What was caught.
    """
    if not isinstance(error, _TYPES) or error.__traceback__ is None:
        return False
    calls = [error.__traceback__]
    while (inner := calls[-1].tb_next) is not None:
        calls.append(inner)
    packages = [call.tb_frame.f_globals.get("__name__", "").partition(".")[0] for call in calls]
    raised = calls[-1].tb_frame.f_code.co_code[calls[-1].tb_lasti] == _RAISE
    return raised and packages[-1] == _OURS and set(packages) <= _CARRIERS
