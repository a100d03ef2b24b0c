"""The compiled passes of affine maps against the tensor operations, which autograd differentiates."""

import math

import pytest
import torch
from torch import Tensor

from likely.bijections import Affine


@pytest.mark.parametrize("inverse", [False, True], ids=["map", "inverse"])
class TestCompiledAffine:
    places = torch.tensor([4, 0, 3])

    def _case(self, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        return torch.randn(rows, 5, dtype=dtype, requires_grad=True), (3 * torch.randn(rows, 2, 3, dtype=dtype)).requires_grad_()

    @pytest.mark.parametrize("rows", [1, 300])
    def test_values_and_gradients_are_those_of_the_tensor_operations(self, inverse, rows):
        affine, (x, raw) = Affine(1.5), self._case(rows)
        strided = x.T.contiguous().T, raw.transpose(1, 2).contiguous().transpose(1, 2)
        x, raw = (t.detach().requires_grad_() for t in strided)
        made, expected = affine.among(x, self.places, raw, inverse=inverse), affine.tensors_among(x, self.places, raw, inverse)
        cotangents = [torch.randn(rows, 5, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)]
        found, known = (torch.autograd.grad(pair, (x, raw), cotangents) for pair in (made, expected))
        for ours, theirs in zip((*made, *found), (*expected, *known), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)

    def test_numerical_gradients_agree_twice(self, inverse):
        affine, case = Affine(), self._case(2)
        assert torch.autograd.gradcheck(lambda x, raw: affine.among(x, self.places, raw, inverse=inverse), case)
        assert torch.autograd.gradgradcheck(lambda x, raw: affine.among(x, self.places, raw, inverse=inverse), case)

    def test_layout_dtype_far_and_broken_parameters_and_no_rows(self, inverse):
        affine, (x, raw) = Affine(), (t.detach() for t in self._case(7, torch.float32))
        raw[0, 0] = torch.tensor([1e4, -math.inf, math.nan])
        y, log_det = affine.among(x.T.contiguous().T, self.places, raw.transpose(1, 2).contiguous().transpose(1, 2), inverse=inverse)
        expected, log_expected = affine.tensors_among(x.double(), self.places, raw.double(), inverse)
        assert y.dtype == torch.float32
        assert log_det.dtype == torch.float64
        torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-5, equal_nan=True)
        torch.testing.assert_close(log_det, log_expected, atol=1e-5, rtol=1e-5, equal_nan=True)
        assert log_det.isnan().tolist() == [True] + 6 * [False]
        assert affine.among(x[:0], self.places, raw[:0], inverse=inverse)[0].shape == (0, 5)
        assert affine.among(x, self.places, raw.bfloat16(), inverse=inverse)[0].dtype == torch.float32
