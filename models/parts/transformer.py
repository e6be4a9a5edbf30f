"""The transformer block of PAMI and RPT [rpt A6]: attention with rectified projections, then an MLP; both with
a residual connection and a normalisation after it. Tokens are `(*, n, channels)`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

Projected = tuple[Tensor, Tensor, Tensor]  # queries, keys and values of all heads, each (N, heads, n, channels)


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
        return self.attend(queries, self.attention.project(queries, queries if context is None else context))

    def attend(self, queries: Tensor, projected: Projected) -> Tensor:
        """The same of queries, keys and values that are projected already, where several passes share them."""
        attended = self.attention(queries, projected)
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

    def project(self, queries: Tensor, context: Tensor) -> Projected:
        """Queries `(*, q, channels)`, context `(*, k, channels)` -> queries, keys, values, each as `split`."""
        return self.split(self.queries(queries)), self.split(self.keys(context)), self.split(self.values(context))

    def forward(self, queries: Tensor, projected: Projected) -> Tensor:
        """Queries `(*, q, channels)`, and what `project` makes of them and of a context -> `(*, q, channels)`."""
        mixed = F.scaled_dot_product_attention(*projected, dropout_p=self.dropout.p if self.training else 0.0)
        mixed = self.output(mixed.transpose(1, 2).flatten(2)).view_as(queries)
        return self.norm(self.dropout(mixed).relu() + queries)

    def split(self, projected: Tensor) -> Tensor:
        """`(*, n, heads * channels)` -> `(N, heads, n, channels)`, rectified; N is the product of `*`."""
        return projected.relu().flatten(0, -3).unflatten(2, (self.heads, -1)).transpose(1, 2)
