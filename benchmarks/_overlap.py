"""The wait-free protocol for real: a personal stage that runs while the upload travels over a loop-back socket."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Result = TypeVar("Result")


class Overlap(NamedTuple):
    """What a round of one client brought.

    Attributes:
        personal: What the personal stage returned.
        broadcast: The server's answer.
        events: Names of what happened, in this order.
        seconds: Wall time of the round.
    """

    personal: object
    broadcast: Tensor
    events: list[str]
    seconds: float


def _receive(connection: socket.socket) -> bytes:
    (size,) = struct.unpack("!Q", _exactly(connection, 8))
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionError("the other side closed the connection in the middle of a message")
        parts += part
    return bytes(parts)


def _send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(struct.pack("!Q", len(payload)) + payload)


def serve_once(listener: socket.socket, aggregate: Callable[[Tensor], Tensor], answer: threading.Event | float) -> None:
    """Takes one upload and answers with the aggregate, after an event or so many seconds of travel."""
    connection, _ = listener.accept()
    with connection:
        upload = torch.from_numpy(np.frombuffer(_receive(connection), np.float32).copy())
        if isinstance(answer, threading.Event):
            answer.wait()
        else:
            time.sleep(answer)
        _send(connection, aggregate(upload).numpy().astype(np.float32).tobytes())


def client_round(
    generic_stage: Callable[[], Tensor],
    personal_stage: Callable[[Tensor], Result],
    aggregate: Callable[[Tensor], Tensor],
    answer: threading.Event | float,
    wait_free: bool,
) -> Overlap:
    """One round of one client against a server in a thread of its own.

    Args:
        generic_stage: Returns the model to send, `(D,)`.
        personal_stage: Takes that model; runs before the upload (compute-and-wait) or while it travels.
        aggregate: What the server does.
        answer: When the server answers.
        wait_free: Which of the two.
    """
    events: list[str] = []
    begin = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_once, args=(listener, aggregate, answer))
        server.start()
        upload = generic_stage()
        events.append("generic stage done")
        received: list[Tensor] = []

        def travel() -> None:
            with socket.create_connection(listener.getsockname()) as connection:
                _send(connection, upload.numpy().astype(np.float32).tobytes())
                received.append(torch.from_numpy(np.frombuffer(_receive(connection), np.float32).copy()))
                events.append("broadcast arrived")

        messenger = threading.Thread(target=travel)
        if wait_free:
            messenger.start()
        personal = personal_stage(upload)
        events.append("personal stage done")
        if not wait_free:
            messenger.start()
        if isinstance(answer, threading.Event):
            answer.set()
        messenger.join()
        server.join()
    return Overlap(personal, received[0], events, time.perf_counter() - begin)
