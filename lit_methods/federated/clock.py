"""How long a round would take on real clients and a real network, with and without the wait-free protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lit_methods.errors import check_at_least
from lit_methods.federated.clients import stream_seed


@dataclass(frozen=True)
class NetworkModel:
    """Transfer times of messages.

    Attributes:
        upload_mib_per_second: Bandwidth from a client to the server.
        download_mib_per_second: Bandwidth from the server to a client.
        latency_seconds: Added to each transfer.
        jitter: Relative standard deviation of a transfer's time (log-normal); 0 makes all alike.
        aggregation_seconds: Time that the server takes.
        seed: Seed of the jitter, which depends on client and round alone.

    Raises:
        ValueError: If a bandwidth is not positive or another number negative.
    """

    upload_mib_per_second: float = 1.0
    download_mib_per_second: float = 4.0
    latency_seconds: float = 0.05
    jitter: float = 0.0
    aggregation_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        for name in ("upload_mib_per_second", "download_mib_per_second"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        for name in ("latency_seconds", "jitter", "aggregation_seconds"):
            check_at_least(name, getattr(self, name))

    def transfer(self, client: int, round_number: int, payload_bytes: int) -> tuple[float, float]:
        """Seconds of a client's upload and download in a round."""
        mib = payload_bytes / 2**20
        seconds = (mib / self.upload_mib_per_second, mib / self.download_mib_per_second)
        generator = torch.Generator().manual_seed(stream_seed(self.seed, client, round_number, "transfer"))
        noise = torch.randn(2, generator=generator, dtype=torch.float64) * self.jitter
        up, down = ((self.latency_seconds + s) * float(torch.exp(z)) for s, z in zip(seconds, noise, strict=True))
        return up, down


class Work(NamedTuple):
    """What one client does in a round, in seconds."""

    client: int
    generic: float
    personal: float
    upload: float
    download: float


class ProtocolClock:
    """Two schedules of the same work: compute-and-wait, and wait-free (Chen et al., Section on wait-free training).

    Compute-and-wait: a client trains both models, sends, and idles until the next broadcast. Wait-free: it sends as
    soon as the generic stage ends, and trains the personal model while the message travels. It starts its next
    generic stage when the broadcast has arrived and its personal stage is done; a client that is not sampled next
    may finish later without delaying anybody.

    For equal clients with compute `g`, `p` and communication `c = u + a + v`, a round takes `g + p + c` and
    `g + max(p, c)` seconds.
    """

    def __init__(self) -> None:
        self.sequential = 0.0
        self.wait_free = 0.0
        self._busy_until: dict[int, float] = {}

    def advance(self, work: Sequence[Work], aggregation: float) -> tuple[float, float]:
        """Adds a round, and returns the time at which the server has aggregated it under each protocol."""
        start = self.sequential
        self.sequential = aggregation + max(
            (start + w.download + w.generic + w.personal + w.upload for w in work), default=start
        )
        start = self.wait_free
        arrivals = [start]
        for w in work:
            begin = max(start + w.download, self._busy_until.get(w.client, 0.0))
            arrivals.append(begin + w.generic + w.upload)
            self._busy_until[w.client] = begin + w.generic + w.personal
        self.wait_free = aggregation + max(arrivals)
        return self.sequential, self.wait_free

    def state_dict(self) -> dict[str, Any]:
        """Both times and when each client will be free."""
        return {
            "sequential": self.sequential,
            "wait_free": self.wait_free,
            "busy_until": dict(self._busy_until),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.sequential, self.wait_free = float(state["sequential"]), float(state["wait_free"])
        self._busy_until = dict(state["busy_until"])
