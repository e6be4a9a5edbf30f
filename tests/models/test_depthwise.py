"""Depthwise convolutions with gradients of our own, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from models.parts.depthwise import depthwise_conv2d


@pytest.mark.parametrize(
    ("side", "stride", "dilation"),
    [(3, 1, 2), (5, 1, 1), (5, 2, 1), (5, 1, 2), (5, 1, 4), (7, 1, 1), (3, 2, 1), (3, 2, 2)],
)
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (16, 19)])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_those_of_the_convolution(side, stride, dilation, size, biased):
    torch.manual_seed(0)
    x = torch.randn(2, 8, *size).to(memory_format=torch.channels_last).requires_grad_()
    parameters = [torch.randn(8, 1, side, side, requires_grad=True)]
    parameters += [torch.randn(8, requires_grad=True)] if biased else []
    given = (x, *parameters)
    weight, bias, *_ = *parameters, None
    found = depthwise_conv2d(x, weight, bias, stride, dilation)
    x, weight, bias, *_ = *(value.double() for value in given), None
    expected = F.conv2d(x, weight, bias, stride, dilation * (side // 2), dilation, 8)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    change = torch.randn_like(found)
    ours = torch.autograd.grad(found, given, change)
    theirs = torch.autograd.grad(expected, given, change.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_only_what_pytorch_does_slowly_is_our_own():
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5, requires_grad=True)
    name = type(depthwise_conv2d(x, weight, None, 1, 1).grad_fn).__name__
    assert name == "_DepthwiseBackward"
    for others in ((x, weight[..., 1:4, 1:4], 1, 1), (x.double(), weight.double(), 1, 1)):
        x_, weight_, *steps = others
        assert type(depthwise_conv2d(x_, weight_, None, *steps).grad_fn).__name__ == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, weight, None, 1, 1).dtype == torch.bfloat16
