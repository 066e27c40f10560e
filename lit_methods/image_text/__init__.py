"""Image-text matching by aligned conceptual knowledge, without paired data (MACK; Huang et al., NeurIPS 2022)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_methods.image_text.builder import KnowledgeBuilder, build_knowledge
from lit_methods.image_text.gallery import Gallery
from lit_methods.image_text.knowledge import KnowledgeBase
from lit_methods.image_text.matcher import KnowledgeMatcher
from lit_methods.image_text.parsing import CaptionParser, KnowledgeParser, PretaggedParser, TaggerParser, Unit
from lit_methods.image_text.reranking import fuse, rerank
from lit_methods.image_text.transforms import Centring, FeatureMap, SeparateAffine, SharedLinear, Whitening

if TYPE_CHECKING:
    from lit_methods.image_text.evaluation import StreamingRetrieval
    from lit_methods.image_text.metrics import RetrievalRanks
    from lit_methods.image_text.module import MACK

__all__ = [
    "MACK",
    "CaptionParser",
    "Centring",
    "FeatureMap",
    "Gallery",
    "KnowledgeBase",
    "KnowledgeBuilder",
    "KnowledgeMatcher",
    "KnowledgeParser",
    "PretaggedParser",
    "RetrievalRanks",
    "SeparateAffine",
    "SharedLinear",
    "StreamingRetrieval",
    "TaggerParser",
    "Unit",
    "Whitening",
    "build_knowledge",
    "fuse",
    "rerank",
]

_LATE = {"MACK": "module", "RetrievalRanks": "metrics", "StreamingRetrieval": "evaluation"}


def __getattr__(name: str) -> Any:
    """Imports what needs Lightning or torchmetrics only when it is asked for."""
    if name in _LATE:
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
