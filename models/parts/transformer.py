"""The transformer block of PAMI and RPT [rpt A6]: attention with rectified projections, then an MLP; both with
a residual connection and a normalisation after it. Tokens are `(*, n, channels)`.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """Multi-head attention and an MLP; `channels` is the width of the tokens and of EACH head.

    Dropout acts on the attention weights and on what the heads give together.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(channels, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, context: Tensor | None = None) -> Tensor:
        """Queries `(*, q, channels)` look at the context `(*, k, channels)`, or at themselves -> `(*, q, channels)`."""
        attended = self.attention(queries, queries if context is None else context)
        return self.norm(attended + self.mlp(attended))


class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(channels)) v in every head, with ReLU after all four linear maps."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values = (nn.Linear(channels, heads * channels) for _ in range(3))
        self.output = nn.Linear(heads * channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        for projection in (self.queries, self.keys, self.values):
            nn.init.normal_(projection.weight, std=channels**-0.5)
        nn.init.xavier_normal_(self.output.weight)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries `(*, q, channels)`, context `(*, k, channels)` -> `(*, q, channels)`."""
        projected = map(self.split, (self.queries(queries), self.keys(context), self.values(context)))
        mixed = F.scaled_dot_product_attention(*projected, dropout_p=self.dropout.p if self.training else 0.0)
        mixed = self.output(mixed.transpose(1, 2).flatten(2)).view_as(queries)
        return self.norm(self.dropout(mixed).relu() + queries)

    def split(self, projected: Tensor) -> Tensor:
        """`(*, n, heads * channels)` -> `(N, heads, n, channels)`, rectified; N is the product of `*`."""
        return projected.relu().flatten(0, -3).unflatten(2, (self.heads, -1)).transpose(1, 2)
