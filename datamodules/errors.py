"""Errors of the datamodules."""

from collections.abc import Iterable


class DatasetNotFoundError(FileNotFoundError):
    """A data set is at none of the places where it was looked for.

    Args:
        wanted: What was looked for, such as a data set's name and its files.
        places: Every place that was looked at.
        remedy: What to install or pass, as a sentence.
    """

    def __init__(self, wanted: str, places: Iterable[object], remedy: str) -> None:
        looked = "; ".join(str(place) for place in places)
        super().__init__(f"{wanted} not found. Looked in: {looked}. {remedy}")
