"""Drop-in callbacks: each method of the collection that fits any LightningModule."""

from lit_methods.callbacks.banded_square_root_noise import BandedSquareRootNoise
from lit_methods.callbacks.knowledge_rerank import KnowledgeRerank

__all__ = ["BandedSquareRootNoise", "KnowledgeRerank"]
