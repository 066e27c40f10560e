"""The same federated runs on Flower: each client is a node, and the server is a Trainer. Needs the extra `flower`."""

try:
    from lit_methods.federated.flower.client import Build, RunConfig, client_app
    from lit_methods.federated.flower.server import fit_on_flower, server_app
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "flwr":
        raise
    raise ModuleNotFoundError(
        'lit_methods.federated.flower needs Flower: pip install "lit-methods[flower]".', name=error.name
    ) from error

__all__ = ["Build", "RunConfig", "client_app", "fit_on_flower", "server_app"]
