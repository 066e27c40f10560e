"""Softmax output approximation: attention that trains in a fraction of the memory (Lee & Lee, NeurIPS 2023)."""

from lit_methods.softmax_approximation.attention import softmax_attention, softmax_value_product
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.exact import BFloat16, Merged, Recompute
from lit_methods.softmax_approximation.logarithmic import Logarithmic, StochasticLogarithmic
from lit_methods.softmax_approximation.paper import RankedTail
from lit_methods.softmax_approximation.registry import CODECS, as_codec
from lit_methods.softmax_approximation.selection import Selection, choose_codec
from lit_methods.softmax_approximation.top_k import TopK

__all__ = [
    "CODECS",
    "BFloat16",
    "Codec",
    "Logarithmic",
    "Merged",
    "RankedTail",
    "Recompute",
    "Selection",
    "StochasticLogarithmic",
    "TopK",
    "as_codec",
    "choose_codec",
    "softmax_attention",
    "softmax_value_product",
]
