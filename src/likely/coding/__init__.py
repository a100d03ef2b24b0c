"""Entropy coding: integer tables, a stack of coded symbols, and codecs that compose; bits-back coding of a chain of latents."""

from likely.coding.codec import Codec, autoregressive, categorical, columns, piecewise, prefixed
from likely.coding.integer import counts
from likely.coding.stack import Stack

__all__ = ["Codec", "Stack", "autoregressive", "categorical", "columns", "counts", "piecewise", "prefixed"]
