"""Causal attention of grouped heads, whole or step by step with a state of bounded size.

    softmax     y_i = sum_j a_ij v_j,   a_i. = softmax over j of (q_i . k_j / sqrt(d) + bias_ij),   i - w < j <= i
    linear      y_i = sum_{j<=i} (phi(q_i) . phi(k_j)) v_j / sum_{j<=i} phi(q_i) . phi(k_j),   phi = 1 + elu
                    = S_i^T phi(q_i) / (z_i . phi(q_i)),   S_i = S_{i-1} + phi(k_i) v_i^T,   z_i = z_{i-1} + phi(k_i)

The window w of softmax attention is the option of local attention; of full attention it is the
length of an example, which it does not bite. Steps keep the last w keys and values in a ring, or S
and z, which do not grow at all. Several query heads may share a head of keys and values, which
makes the ring smaller. Rotations of q and k act, in linear attention, on the numerator alone.

References:
    | Attention is all you need (Vaswani et al., 2017) | https://arxiv.org/abs/1706.03762
    | GQA: training generalized multi-query transformer models (Ainslie et al., 2023) | https://arxiv.org/abs/2305.13245
    | Longformer: the long-document transformer (local windows; Beltagy et al., 2020) | https://arxiv.org/abs/2004.05150
    | Transformers are RNNs: fast autoregressive transformers with linear attention (Katharopoulos et al., 2020) | https://arxiv.org/abs/2006.16236
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.nets.positions import Positions, rotated
from likely.nets.split import head_width

__all__ = ["LinearAttention", "Place", "Places", "Ring", "SoftmaxAttention", "Sums"]

Step = Callable[[Tensor, Tensor, "Place", Any], Tensor]

_FEW = 16  # streams, for which one thread is enough
_CHUNK = 64  # places that linear attention treats as one square


@dataclass(frozen=True)
class Place:
    """What is to be known of L places, or of one: what is added to tokens [L, width], rotations [L, 1, head_width / 2],
    and a bias or mask of scores, -inf where none is allowed."""

    added: Tensor | None
    turns: Tensor | None
    mask: Tensor | None

    @cached_property
    def angles(self) -> np.ndarray:
        """The turns of one place as cosines and sines, [2, head_width / 2]; [2, 0] without."""
        return np.empty((2, 0), np.float32) if self.turns is None else torch.cat([self.turns.real, self.turns.imag]).numpy()

    @classmethod
    def whole(cls, positions: Positions, length: int, window: int, like: Tensor, ahead: int = 0) -> "Place":
        """Of places -ahead .. length - ahead - 1; nothing is added to tokens at negative ones.

        The mask is [heads or 1, blocks, w, 2 w] if they are more than a window, see `_in_blocks`.
        """
        place = torch.arange(length, device=like.device)
        if length <= window:
            query, key = place[:, None], place[None]
        else:
            block = torch.arange(0, length, window, device=like.device)[:, None, None]
            inner = torch.arange(2 * window, device=like.device)
            query, key = block + inner[:window, None], block - window + inner
        allowed = (key <= query) & (key > query - window) & (key >= 0)
        bias = positions.bias(query - ahead, key - ahead, like.dtype)
        if bias is None and length > window:
            bias = like.new_zeros(1, *allowed.shape)
        mask = None if bias is None else bias.masked_fill(~allowed, -torch.inf)  # none: plainly causal
        return cls(positions.added(place[: length - ahead], like.dtype), positions.turns(place - ahead, like.dtype), mask)


class Places:
    """Places one by one from -ahead on, computed in runs. The bias of one is per slot of the ring, [heads, min(slot + 1, window)]."""

    RUN = 64

    def __init__(self, positions: Positions, window: int, like: Tensor, ahead: int = 0) -> None:
        self.positions, self.window, self.like, self.ahead, self.first = positions, window, like, ahead, -1
        self.end = math.inf if positions.longest is None else positions.longest + ahead
        self.run: list[Place] = []

    def __getitem__(self, place: int) -> Place:
        slot = place + self.ahead
        at = slot % self.RUN
        if slot - at != self.first:
            self.first = slot - at
            self.run = self._run(torch.arange(self.first, min(self.first + self.RUN, self.end), device=self.like.device) - self.ahead)
        return self.run[at] if self.positions.kind != "alibi" else replace(self.run[at], mask=self._bias(slot))

    def _run(self, places: Tensor) -> list[Place]:
        added, turns = self.positions.added(places.clamp_min(0), self.like.dtype), self.positions.turns(places, self.like.dtype)
        return [Place(None if added is None else added[i], None if turns is None else turns[i], None) for i in range(len(places))]

    def _bias(self, newest: int) -> Tensor | None:
        slot = torch.arange(min(newest + 1, self.window), device=self.like.device)
        query, key = torch.full_like(slot, newest), newest - (newest - slot) % self.window
        return self.positions.bias(query - self.ahead, key - self.ahead, self.like.dtype)


@dataclass
class Ring:
    """The last keys and values, [n, kv_heads, window, head_width] each; place t is in slot t mod window. Updated in place."""

    keys: Tensor
    values: Tensor
    seen: int = 0

    @cached_property
    def compilable(self) -> bool:
        """Whether compiled functions serve, where no gradient is asked for."""
        return _may_compile(self.keys)

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same memory as numpy's, and some to compute in."""
        from likely.solve.one_query import array

        return array(self.keys), array(self.values), array(_wide(self.keys.new_empty(2 * self.keys.shape[3] + self.keys.shape[2])))

    def next_slot(self) -> tuple[int, int]:
        """Where the newest key and value go, and how many are known with them."""
        self.seen += 1
        window = self.keys.shape[2]
        return (self.seen - 1) % window, min(self.seen, window)


@dataclass
class Sums:
    """S [n, heads, d, d] and z [n, heads, d]: all that linear attention keeps, updated in place."""

    products: Tensor
    keys: Tensor


class _Grouped(nn.Module):
    """Queries of all heads, keys and values of fewer, from one linear map."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width(width, heads)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(queries and keys, values), [..., heads, head_width] with the keys' heads after those of the queries."""
        every = self.qkv(h).view(*h.shape[:-1], -1, self.head_width)
        return every.narrow(-2, 0, self.heads + self.kv_heads), every.narrow(-2, self.heads + self.kv_heads, self.kv_heads)

    def _spread(self, k: Tensor) -> Tensor:
        """Keys or values [B, L, kv_heads, d] for each head of queries, [B, heads, L, d]."""
        k = k.transpose(1, 2)
        return k if self.heads == self.kv_heads else k.repeat_interleave(self.heads // self.kv_heads, 1)


def _wide(x: Tensor) -> Tensor:
    """In at least float32."""
    return x if x.dtype == torch.float64 else x.float()


class SoftmaxAttention(_Grouped):
    """Attention to the window's keys; see the formulas above."""

    def __init__(self, width: int, heads: int, kv_heads: int, window: int) -> None:
        super().__init__(width, heads, kv_heads)
        self.window = window

    def forward(self, h: Tensor, place: Place) -> Tensor:
        """h [B, L, width] -> the same shape."""
        qk, v = self._split(h)
        qk = rotated(qk, place.turns)
        q, k = qk.narrow(-2, 0, self.heads), qk.narrow(-2, self.heads, self.kv_heads)
        q, k, v = q.transpose(1, 2), self._spread(k), self._spread(v)
        y = _in_blocks(q, k, v, place.mask, self.window) if h.shape[1] > self.window else _attended(q, k, v, place.mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def init(self, n: int) -> Ring:
        size = n, self.kv_heads, self.window, self.head_width
        return Ring(self.out.weight.new_empty(size), self.out.weight.new_empty(size))

    def stepper(self) -> Step:
        """A function (h [n, width] of the next token, its norm, its place, the ring) -> h with attention added.

        It has few operations and calls no module: of a single stream these cost more time than the arithmetic.
        """
        d, heads, kv_heads = self.head_width, self.heads, self.kv_heads
        q, rest = self.qkv.weight.split([heads * d, 2 * kv_heads * d])
        into, out = torch.cat([q * d**-0.5, rest]).T.contiguous(), self.out.weight.mT

        def step(h: Tensor, u: Tensor, place: Place, cache: Ring) -> Tensor:
            n = h.shape[0]
            every = torch.mm(u, into).view(n, heads + 2 * kv_heads, d)
            compiled = cache.compilable and not torch.is_grad_enabled()
            mixed = _compiled(every, place, cache, heads) if compiled else _by_products(every, place, cache, heads)
            return torch.addmm(h, mixed.view(n, -1), out)

        return step


def _may_compile(keys: Tensor) -> bool:
    """Whether compiled functions, which use one thread, serve these streams: on a CPU, and if torch would gain little by more threads."""
    plain = keys.device.type == "cpu" and keys.dtype in (torch.float32, torch.float64, torch.bfloat16)
    return plain and (keys.shape[0] <= _FEW or torch.get_num_threads() == 1)


def _compiled(every: Tensor, place: Place, cache: Ring, heads: int) -> Tensor:
    """Attention of one query per head, [n, heads, d]; every: queries, scaled, keys and values, [n, heads + 2 kv_heads, d]."""
    from likely.solve.one_query import array, attend

    (slot, known), (keys, values, scratch), mixed = cache.next_slot(), cache.arrays, every.new_empty(len(every), heads, every.shape[2])
    bias = scratch[:0, None] if place.mask is None else array(_wide(place.mask))
    attend(array(every), place.angles, bias, keys, values, slot, known, scratch, array(mixed))
    return mixed


def _by_products(every: Tensor, place: Place, cache: Ring, heads: int) -> Tensor:
    """The same by torch's products, on any device."""
    n, kv_heads, _, d = cache.keys.shape
    slot, known = cache.next_slot()
    every.narrow(1, 0, heads + kv_heads).copy_(rotated(every.narrow(1, 0, heads + kv_heads), place.turns))
    q, k, v = every.split([heads, kv_heads, kv_heads], 1)
    cache.keys.select(2, slot).copy_(k)
    cache.values.select(2, slot).copy_(v)
    keys, values = (ring.flatten(0, 1).narrow(1, 0, known) for ring in (cache.keys, cache.values))
    scores = torch.bmm(q.reshape(n * kv_heads, -1, d), keys.mT)  # heads that share keys are rows of one product
    scores = scores if place.mask is None else (scores.view(n, heads, -1) + place.mask).view_as(scores)
    return torch.bmm(scores.softmax(-1), values)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int) -> Tensor:
    """Softmax attention within a window by blocks of `window` queries, each to its own block of keys and the one before.

    q, k, v [B, heads, L, d]; mask [heads or 1, blocks, window, 2 window].
    """
    (batch, heads, length, width), end = q.shape, -q.shape[2] % window
    q = F.pad(q, (0, 0, 0, end)).reshape(batch, -1, window, width)
    k, v = (F.pad(t, (0, 0, window, end)).unfold(2, 2 * window, window).transpose(3, 4).flatten(1, 2) for t in (k, v))
    mask = None if mask is None else mask.expand(heads, -1, -1, -1).flatten(0, 1)
    return _attended(q, k, v, mask).view(batch, heads, -1, width)[:, :, :length]


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention under a mask, or a causal one.

    In bf16 on a CPU plain matrix products take a third of the time of torch's fused kernel, backward included.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    rows, columns = q.shape[2], k.shape[2]
    mask = torch.full((rows, columns), -torch.inf, dtype=q.dtype).triu(1) if mask is None else mask.to(q.dtype)
    mask = mask.expand(*q.shape[:2], rows, columns).flatten(0, 1) if mask.ndim > 2 else mask
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=q.shape[-1] ** -0.5)
    return (scores.softmax(-1) @ v.flatten(0, 1)).view(*q.shape[:-1], -1)


class LinearAttention(_Grouped):
    """Attention whose kernel is a product of features; its state does not grow."""

    def forward(self, h: Tensor, place: Place) -> Tensor:
        """h [B, L, width] -> the same shape."""
        features, turned, v = self._features(h, place)
        (q, k), (qt, kt) = (x.split([self.heads, self.kv_heads], -2) for x in (features, turned))
        q, qt, k, kt, v = q.transpose(1, 2), qt.transpose(1, 2), self._spread(k), self._spread(kt), self._spread(v)
        below = (q * k.cumsum(2)).sum(-1, keepdim=True)
        return self.out((_linear(qt, kt, v) / below).transpose(1, 2).flatten(2).to(h.dtype))

    def init(self, n: int) -> Sums:
        weight, d = self.out.weight, self.head_width
        return Sums(*(_wide(weight.new_zeros(n, self.kv_heads, *size)) for size in ((d, d), (d,))))

    def stepper(self) -> Step:
        """As of softmax attention."""
        return self._step

    def _step(self, h: Tensor, u: Tensor, place: Place, cache: Sums) -> Tensor:
        features, turned, v = self._features(u, place)
        (q, k), (qt, kt) = (x.split([self.heads, self.kv_heads], 1) for x in (features, turned))
        cache.products += kt[..., None] * v[..., None, :]
        cache.keys += k
        q, qt = (x.unflatten(1, (self.kv_heads, -1)) for x in (q, qt))
        return h + self.out((qt @ cache.products / (q @ cache.keys[..., None])).flatten(1).to(h.dtype))

    def _features(self, h: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """phi of queries and keys, the same turned, and values, [..., heads, head_width]; at least in float32."""
        qk, v = self._split(h)
        features = 1 + F.elu(_wide(qk))
        return features, rotated(features, place.turns), v.to(features.dtype)


def _linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sum_{j<=i} (q_i . k_j) v_j, [B, heads, L, d]: squares within chunks, and the sum of the chunks before."""
    products, parts = 0.0, []
    for a, b, c in zip(q.split(_CHUNK, 2), k.split(_CHUNK, 2), v.split(_CHUNK, 2), strict=True):
        parts.append((a @ b.mT).tril() @ c + a @ products if parts else (a @ b.mT).tril() @ c)
        products = products + b.mT @ c
    return torch.cat(parts, 2)
