"""A Flower federation as the server sees it: one node for each client."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from lit_methods.federated.clients import Federation

_POLL_SECONDS = 0.1


class RemoteClient:
    """What the server knows of a client's data: how often each class occurs."""

    random = False

    def __init__(self, class_counts: Sequence[int]) -> None:
        self.labels = torch.arange(len(class_counts)).repeat_interleave(torch.tensor(class_counts))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        raise RuntimeError("Examples stay on their node; a Flower server reads none of them.")


class RemoteFederation:
    """All clients, as the server knows them."""

    def __init__(self, fingerprint: str, clients: Sequence[RemoteClient]) -> None:
        self.fingerprint, self.clients = fingerprint, clients

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, client: int) -> RemoteClient:
        return self.clients[client]


class Nodes:
    """The nodes of a federation, one for each client.

    Args:
        grid: Flower's access to them.
        federation: The clients that they should hold.
        timeout: Seconds within which they must connect, and answer.
    """

    def __init__(self, grid: Grid, federation: Federation, timeout: float) -> None:
        self.grid, self.timeout = grid, timeout
        self._ids: dict[int, int] = {}
        clients: dict[int, RemoteClient] = {}
        deadline, seen = time.monotonic() + timeout, set[int]()
        while len(clients) < len(federation):
            new = set(grid.get_node_ids()) - seen
            for node, reply in self._send("query", new, RecordDict()).items():
                found: Mapping[str, Any] = reply.config_records["node"]
                client = found["partition-id"]
                self._check(client, found["num-partitions"], found["fingerprint"], federation)
                self._ids[client], clients[client] = node, RemoteClient(found["class-counts"])
            if not new and time.monotonic() > deadline:
                raise RuntimeError(f"{len(clients)} of {len(federation)} nodes have connected within {timeout} s.")
            seen |= new
            time.sleep(0 if new else _POLL_SECONDS)
        self.federation = RemoteFederation(federation.fingerprint, [clients[i] for i in range(len(federation))])

    def _check(self, client: int, partitions: int, fingerprint: str, federation: Federation) -> None:
        if partitions != len(federation):
            raise ValueError(
                f"The nodes have partition-ids of {partitions} partitions, but the data are dealt out to "
                f"{len(federation)} clients; start one node for each, in a simulation by "
                f"--federation-config num-supernodes={len(federation)}."
            )
        if client not in range(partitions):
            raise ValueError(f"A node has the partition-id {client}, but there are {partitions} partitions.")
        if client in self._ids:
            raise ValueError(f"Two nodes have the partition-id {client}; each needs its own, 0 to {partitions - 1}.")
        if fingerprint != federation.fingerprint:
            raise ValueError(
                f"The node of client {client} holds a part of {fingerprint}, but the server of "
                f"{federation.fingerprint}; data set, partition, number of clients and seed must be the same."
            )

    def ask(self, kind: str, clients: Sequence[int], content: RecordDict) -> list[RecordDict]:
        """Sends the same to some clients and returns their replies in the same order."""
        nodes = [self._ids[client] for client in clients]
        replies = self._send(kind, nodes, content)
        return [replies[node] for node in nodes]

    def _send(self, kind: str, nodes: Collection[int], content: RecordDict) -> dict[int, RecordDict]:
        messages = [Message(content, node, kind, ttl=self.timeout) for node in nodes]
        replies = list(self.grid.send_and_receive(messages, timeout=self.timeout)) if messages else []
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"Node {reply.metadata.src_node_id} failed to {kind}: {reply.error.reason}")
        answered = {reply.metadata.src_node_id: reply.content for reply in replies}
        if silent := sorted(set(nodes) - set(answered)):
            raise RuntimeError(f"Nodes {silent} did not answer to {kind!r} within {self.timeout} s.")
        return answered
