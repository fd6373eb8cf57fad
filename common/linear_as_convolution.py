"""Fully connected layers through the library that computes the convolutions.

PyTorch multiplies FP32 matrices on a CPU with MKL, which does not use the full width of processors
of other makers than Intel, and convolves with oneDNN, which does. A 1x1 convolution over an image
with one pixel for each row is the same product.
"""

from torch import Tensor, nn

MIN_WEIGHTS = 2**16  # below, the product is too short to matter


class LinearAsConvolution(nn.Module):
    """Does what an `nn.Linear` does; shares its parameters."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[N, features] -> [N, features out]; N may be 0."""
        if len(x) == 0:
            return x.new_empty(0, len(self.weight))
        row_of_pixels = x.contiguous()[None, None].permute(0, 3, 1, 2)  # NHWC memory as it lies
        products = nn.functional.conv2d(row_of_pixels, self.weight, self.bias)
        return products.permute(0, 2, 3, 1).reshape(len(x), -1)


def convolve_linears(model: nn.Module) -> int:
    """Replaces every large `nn.Linear` of a model in place; returns how many there were."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.numel() >= MIN_WEIGHTS:
                setattr(parent, name, LinearAsConvolution(child))
                replaced += 1
    return replaced
