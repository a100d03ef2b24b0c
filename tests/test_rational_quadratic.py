"""The compiled passes of the rational-quadratic spline against its formula, which autograd differentiates."""

import math

import pytest
import torch
from torch import Tensor

from likely.bijections import Spline


@pytest.mark.parametrize("inverse", [False, True], ids=["map", "inverse"])
@pytest.mark.parametrize("spline", [Spline(1, bound=2.0), Spline(2), Spline(8)], ids=str)
class TestCompiledSpline:
    def _case(self, spline: Spline, rows: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        x = (3 * torch.randn(rows, n)).to(dtype)
        x[0, 0], x[-1, -1] = 1e3, -1e3
        return x.requires_grad_(), (2 * torch.randn(rows, spline.size, n)).to(dtype).requires_grad_()

    def _run(self, spline: Spline, inverse: bool, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return spline.inverse(x, raw) if inverse else spline(x, raw)

    @pytest.mark.parametrize("shape", [(40, 1), (7, 100), (3, 700)], ids=str)
    def test_values_and_gradients_are_those_of_the_formula(self, spline, inverse, shape):
        x, raw = self._case(spline, *shape)
        made, formula = self._run(spline, inverse, x, raw), spline.formula(x, raw, inverse=inverse)
        cotangents = [torch.randn_like(x), torch.randn_like(x)]
        torch.autograd.grad(made, (x, raw), cotangents, retain_graph=True)  # which leaves what it needs as it was
        found = torch.autograd.grad(made, (x, raw), cotangents)
        expected = torch.autograd.grad(formula, (x, raw), cotangents)
        for ours, theirs in zip((*made, *found), (*formula, *expected), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)

    def test_numerical_gradients_agree_twice(self, spline, inverse):
        x, raw = self._case(spline, 2, 2)
        assert torch.autograd.gradcheck(lambda *v: self._run(spline, inverse, *v), (x, raw))
        assert torch.autograd.gradgradcheck(lambda *v: self._run(spline, inverse, *v), (x, raw))
        (first,) = torch.autograd.grad(self._run(spline, inverse, x, raw.detach())[1].sum(), x, create_graph=True)
        assert first.requires_grad

    def test_single_precision_layout_and_dtype_of_parameters(self, spline, inverse):
        x, raw = (t.detach() for t in self._case(spline, 9, 6, torch.float32))
        exact = self._run(spline, inverse, x.double(), raw.double())
        strided = raw.transpose(1, 2).contiguous().transpose(1, 2)
        for ours, theirs in zip(self._run(spline, inverse, x.T.contiguous().T, strided), exact, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)
        assert self._run(spline, inverse, x, raw.bfloat16())[0].dtype == torch.float32

    def test_broken_parameters_are_seen_and_no_rows_are_no_error(self, spline, inverse):
        x, raw = (t.detach() for t in self._case(spline, 4, 3))
        broken = raw.clone()
        broken[1, 0, 1] = math.nan
        y, log_slope = self._run(spline, inverse, x.clamp(-1, 1), broken)
        assert y[1, 1].isnan()
        assert log_slope[1, 1].isnan()
        assert y.isnan().sum() == 1
        assert self._run(spline, inverse, x[:0], raw[:0])[0].shape == (0, 3)
