"""What a matcher still lacks, taken from a datamodule."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_methods.image_text.builder import build_knowledge
from lit_methods.image_text.matcher import KnowledgeMatcher


def prepare(matcher: KnowledgeMatcher, datamodule: Any) -> None:
    """Builds the knowledge and fits a closed-form map where they are missing.

    Args:
        matcher: Completed in place.
        datamodule: Has `knowledge_dataloader()`, batches of features `(N, D)` and names, or `region_dataloader()`,
            batches with `regions (B, R, D)` and `mask (B, R)`, as far as they are needed.

    Raises:
        MisconfigurationException: If the datamodule has not got what is missing.
    """
    if not len(matcher.knowledge):
        stream = _stream(datamodule, "knowledge_dataloader", "pass knowledge=, a KnowledgeBase or its folder")
        matcher.knowledge = build_knowledge(stream)
    if not matcher.transform.is_fitted:
        batches = _stream(datamodule, "region_dataloader", "call the transform's fit beforehand")
        matcher.transform.fit((batch["regions"][batch["mask"]] for batch in batches), matcher.knowledge)


def _stream(datamodule: Any, name: str, instead: str) -> Any:
    make = getattr(datamodule, name, None)
    stream = None if make is None else make()
    if stream is None:
        raise MisconfigurationException(f"{type(datamodule).__name__} has no {name}; {instead}.")
    return stream
