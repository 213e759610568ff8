"""The four bundled networks for 28 x 28 grey images, small enough to train and score on a CPU.

Each constructor takes no argument, so that a name is all that is needed to rebuild the module whose
weights lie in ``assets/``. Input ``[N, 1, 28, 28]``, output logits ``[N, 10]``.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

IMAGE_SHAPE = (1, 28, 28)
CLASSES = 10


class Mlp(nn.Sequential):
    """Two hidden layers, 1.07 M weights: nearly all time goes into one matrix."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(784, 1024),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(1024, 256),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(256, CLASSES),
        )


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, "same" padding, and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """The basic block of arXiv 1512.03385, with a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride)
        self.second = conv_norm(outputs, outputs, 3)
        self.shortcut = (
            nn.Identity() if inputs == outputs and stride == 1 else conv_norm(inputs, outputs, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(torch.relu(self.first(x)))
        return torch.relu(residual + self.shortcut(x))


class ResNet(nn.Sequential):
    """Four residual blocks at 14, 14, 7 and 4 pixels."""

    def __init__(self) -> None:
        super().__init__(
            conv_norm(1, 16, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            ResidualBlock(16, 32, 1),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 128, 2),
            ResidualBlock(128, 128, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, CLASSES),
        )


class InvertedResidual(nn.Module):
    """Expand, depthwise, project: the block of arXiv 1801.04381."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = conv_norm(inputs, hidden, 1)
        self.depthwise = conv_norm(hidden, hidden, 3, stride, groups=hidden)
        self.project = conv_norm(hidden, outputs, 1)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu6(self.expand(x))
        hidden = nn.functional.relu6(self.depthwise(hidden))
        projected: Tensor = self.project(hidden)
        return x + projected if self.residual else projected


class MobileNet(nn.Sequential):
    """Inverted residuals at 14, 7 and 4 pixels, then a wide 1x1 head."""

    def __init__(self) -> None:
        super().__init__(
            conv_norm(1, 16, 3),
            nn.ReLU6(),
            InvertedResidual(16, 24, 2, 2),
            InvertedResidual(24, 24, 1, 4),
            InvertedResidual(24, 48, 2, 4),
            InvertedResidual(48, 48, 1, 4),
            InvertedResidual(48, 80, 2, 4),
            InvertedResidual(80, 80, 1, 4),
            conv_norm(80, 256, 1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, CLASSES),
        )


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, with plain linear layers so that every weight can be pruned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = self.mlp(self.norm_mlp(x))
        return x + mixed


class VisionTransformer(nn.Module):
    """4 x 4 patches, 49 tokens, four blocks of width 64, mean pooling (after arXiv 2010.11929)."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "fashion-mlp": Mlp,
    "fashion-resnet": ResNet,
    "fashion-mobilenet": MobileNet,
    "fashion-vit": VisionTransformer,
}
