"""How a width is split among the heads of attention."""

from likely.errors import UsageError

__all__ = ["head_width"]


def head_width(width: int, heads: int) -> int:
    """Numbers of each head. Raises: UsageError for no heads, and for heads that do not divide the width."""
    if heads < 1 or width % heads:
        raise UsageError(f"{heads} heads do not divide a width of {width}.", "Give a divisor of it, 1 or more.")
    return width // heads
