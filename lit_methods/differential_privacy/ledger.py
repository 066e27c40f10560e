"""For debugging: a record of who took part when, which speaks up as soon as the schedule is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from lit_methods.differential_privacy.factorization import Participation


class ParticipationLedger:
    """Holds training to its participation schedule, index by index, independently of how batches are made.

    Give it batches by :meth:`record`, or set it as ``sampler.ledger``. There it sees this process's share of the
    batches as they are drawn, and counts steps itself; batches that workers draw past the last step are passed over.
    It knows nothing of what came before a resume, nor of other processes' shares.

    Args:
        participation: What is promised; may be replaced once the number of steps is known.
        accumulation: Batches per optimizer step; the last step of a pass may have fewer.

    Attributes:
        counts: Participations of each index so far.
        step: The next step that :meth:`watch` counts; set it where a run is resumed.

    Raises:
        ValueError: If ``accumulation`` is below 1.
    """

    def __init__(self, participation: Participation, accumulation: int = 1) -> None:
        if accumulation < 1:
            raise ValueError(f"accumulation must be at least 1, but is {accumulation!r}.")
        self.participation, self.accumulation = participation, accumulation
        self.counts: Counter[int] = Counter()
        self.step = 0
        self._last: dict[int, int] = {}
        self._batches = 0

    def record(self, step: int, indices: Iterable[int]) -> None:
        """Takes down who took part in a step; a step may come in several calls.

        Args:
            step: Optimizer step, from 0.
            indices: Examples (or other privacy units) of a batch.

        Raises:
            RuntimeError: Naming the index, its steps and the gap, where two participations are too close, one comes
                twice in a step, there are too many, or the step is past the planned ones.
        """
        schedule = self.participation
        if step >= schedule.steps:
            raise RuntimeError(f"Step {step} is past the {schedule.steps} steps that the noise was planned for.")
        for index in indices:
            last = self._last.get(index)
            if last is not None and abs(step - last) < schedule.separation:
                raise RuntimeError(
                    f"Example {index} took part in step {last} and again in step {step}: a gap of {abs(step - last)},"
                    f" but the noise was planned for at least {schedule.separation}. Use one of the samplers of"
                    " lit_methods.differential_privacy as it is."
                )
            if self.counts[index] >= schedule.participations:
                raise RuntimeError(
                    f"Example {index} takes part in step {step} for the {self.counts[index] + 1}th time, after step"
                    f" {last}, but the noise was planned for at most {schedule.participations} participations."
                )
            self.counts[index] += 1
            self._last[index] = step

    def watch(self, batches: Iterable[list[int]]) -> Iterator[list[int]]:
        """Passes the batches of one pass on, and records them.

        Args:
            batches: Index lists; ``accumulation`` of them make a step.

        Yields:
            The same lists.

        Raises:
            RuntimeError: As :meth:`record`.
        """
        self._finish_step()
        for batch in batches:
            if self.step < self.participation.steps:
                self.record(self.step, batch)
            self._batches += 1
            if self._batches == self.accumulation:
                self._finish_step()
            yield batch

    def _finish_step(self) -> None:
        self.step += self._batches > 0
        self._batches = 0
