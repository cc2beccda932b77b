"""The LaCT layer: slow projections around SwiGLU fast weights that are trained while the layer runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from tttabpfn.lact.checks import check_chunk_size
from tttabpfn.lact.functional import lact_swiglu
from tttabpfn.lact.window import window_attention

__all__ = ["MODES", "LaCTSwiGLU"]

MODES = ("set", "causal", "causal-prenorm", "operators")

Operator = tuple[int, int, bool, bool]


class LaCTSwiGLU(nn.Module):
    r"""Large-chunk test-time training layer with SwiGLU fast weights.

    Every head projects a token to query, key and value; one fast-weight update per chunk fits
    :math:`f(k) \approx v`, and the output is :math:`f(q)`, normalised and projected back. All slow weights (the
    projections, the rates and the starting fast weights) train by ordinary autograd through the updates.

    Letters: n batch, l tokens, h heads.

    Parameters
    ----------
    dim : int
        Width of the tokens; a multiple of `n_heads`.
    n_heads : int, default=1
        Independent fast weights; each is ``dim / n_heads`` wide.
    hidden_ratio : float, default=2.0
        Hidden width of the fast weight over the head's width.
    mode : {"set", "causal", "causal-prenorm", "operators"}, default="set"
        "set": update on all tokens, then apply to all; the output of a token does not depend on the tokens' order
        while ``chunk_size=None``. "causal", "causal-prenorm": block-causal sequences, see `lact_swiglu`.
        "operators": the list given to `forward`.
    chunk_size : int, optional
        Tokens per update, 16 to 1,000,000 in bounded memory. None: all tokens ("set"), or 2,048 (causal).
    window_size : int, optional
        Adds causal sliding-window attention over this many tokens, for order inside a chunk; causal modes only. At
        least the chunk size covers what the fast weights have not seen.
    muon : bool, default=True
        Whether gradients are orthogonalised.
    momentum : bool, default=False
        Whether a running gradient is kept, with a learned factor per token.
    newton_schulz : {"schedule", "fixed"}, default="schedule"
    newton_schulz_steps : int, default=5
    newton_schulz_dtype : {"float32", "bfloat16"}, default="float32"
        See `lact_swiglu`.
    base_rate : float, default=0.01
        Rate of every token at initialisation; rates are learned from there and stay positive.
    backend : {"auto", "torch", "triton"}, default="auto"
        Who runs the leaf operations. Training needs "auto" or "torch".
    generator : torch.Generator, optional
        Source of the initial weights. None: torch's global one, as in torch's own layers.

    Raises
    ------
    ValueError
        If an argument is not as above.

    Notes
    -----
    Zhang et al. 2025, "Test-Time Training Done Right" (arXiv 2505.23884), section 3. Positions are not encoded.

    Examples
    --------
    >>> import torch
    >>> layer = LaCTSwiGLU(16, n_heads=2)
    >>> x = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(0))
    >>> y = layer(x)
    >>> y.shape
    torch.Size([3, 20, 16])
    >>> bool(torch.allclose(layer(x.flip(1)).flip(1), y, atol=1e-4))  # a set: order-free
    True
    """

    def __init__(
        self,
        dim: int,
        *,
        n_heads: int = 1,
        hidden_ratio: float = 2.0,
        mode: str = "set",
        chunk_size: int | None = None,
        window_size: int | None = None,
        muon: bool = True,
        momentum: bool = False,
        newton_schulz: str = "schedule",
        newton_schulz_steps: int = 5,
        newton_schulz_dtype: str = "float32",
        base_rate: float = 0.01,
        backend: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_layer(dim, n_heads, hidden_ratio, mode, chunk_size, window_size, base_rate)
        self.dim, self.n_heads, self.mode, self.window_size = dim, n_heads, mode, window_size
        self.chunk_size = 2048 if chunk_size is None and mode.startswith("causal") else chunk_size
        self.muon, self.backend = muon, backend
        self.newton_schulz = newton_schulz
        self.newton_schulz_steps = newton_schulz_steps
        self.newton_schulz_dtype = newton_schulz_dtype
        self.base_rate = base_rate

        head = dim // n_heads
        hidden = max(1, round(head * hidden_ratio))
        self.to_qkv = skip_init(nn.Linear, dim, 3 * dim, bias=False)
        self.to_rates = skip_init(nn.Linear, dim, 3 * n_heads)
        self.to_momentum = skip_init(nn.Linear, dim, n_heads) if momentum else None
        self.output_norm = nn.RMSNorm(head, eps=1e-5)
        self.to_output = skip_init(nn.Linear, dim, dim, bias=False)
        self.w0 = nn.Parameter(torch.empty(n_heads, hidden, head))
        self.w1 = nn.Parameter(torch.empty(n_heads, head, hidden))
        self.w2 = nn.Parameter(torch.empty(n_heads, hidden, head))
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            for weight in (self.to_qkv.weight, self.to_output.weight, self.w0, self.w1, self.w2):
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
            linears = [self.to_rates] if self.to_momentum is None else [self.to_rates, self.to_momentum]
            for linear in linears:
                linear.weight.zero_()
                linear.bias.zero_()
            # softplus(bias) == base_rate at initialisation
            self.to_rates.bias.fill_(math.log(math.expm1(self.base_rate)))

    def forward(self, x: Tensor, operators: Sequence[Operator] | None = None) -> Tensor:
        """Run the layer.

        Parameters
        ----------
        x : Tensor of shape [n, l, dim]
        operators : list of (start, end, update, apply), optional
            Needed for ``mode="operators"``, refused otherwise; see `lact_swiglu`.

        Returns
        -------
        Tensor of shape [n, l, dim]
            For ``mode="operators"`` as long as the applied windows together.

        Raises
        ------
        ValueError
            If the shape or `operators` does not fit.
        """
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"x must have shape [n, l, {self.dim}], got {tuple(x.shape)}")
        if (operators is None) == (self.mode == "operators"):
            needed = "be given" if self.mode == "operators" else "be None"
            raise ValueError(f'operators must {needed} with mode="{self.mode}", got {operators!r}')
        batch = x.shape[0]
        q_raw, k_raw, v_raw = (self._heads(part) for part in self.to_qkv(x).chunk(3, dim=-1))
        q, k = (F.normalize(F.silu(part), dim=-1) for part in (q_raw, k_raw))
        rates = F.softplus(self.to_rates(x)).chunk(3, dim=-1)
        momentum = None if self.to_momentum is None else self._heads(torch.sigmoid(self.to_momentum(x)))
        causal = self.mode.startswith("causal")
        w0, w1, w2 = (weight.repeat(batch, 1, 1) for weight in (self.w0, self.w1, self.w2))
        lr0, lr1, lr2 = (self._heads(rate) for rate in rates)
        o, _ = lact_swiglu(
            w0,
            w1,
            w2,
            q,
            k,
            F.silu(v_raw),
            lr0,
            lr1,
            lr2,
            order=self.mode if causal else "operators",
            chunk_size=self.chunk_size if causal else None,
            operators=None if causal else (operators or self._set_operators(x.shape[1])),
            momentum=momentum,
            muon=self.muon,
            newton_schulz=self.newton_schulz,
            newton_schulz_steps=self.newton_schulz_steps,
            newton_schulz_dtype=self.newton_schulz_dtype,
            backend=self.backend,
        )
        o = self.output_norm(o)
        if self.window_size is not None:
            o = o + window_attention(q_raw, k_raw, v_raw, self.window_size)
        return self.to_output(o.unflatten(0, (batch, self.n_heads)).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[n, l, h * width] to [n * h, l, width]."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2).flatten(0, 1)

    def _set_operators(self, length: int) -> list[Operator]:
        """Update on all tokens, chunk by chunk, then apply to all."""
        size = min(self.chunk_size or length, length)
        updates = [(start, min(start + size, length), True, False) for start in range(0, length, size)]
        return [*updates, (0, length, False, True)]

    def extra_repr(self) -> str:
        """Return the settings that ``print(layer)`` shows."""
        return (
            f"dim={self.dim}, n_heads={self.n_heads}, mode={self.mode!r}, chunk_size={self.chunk_size}, "
            f"window_size={self.window_size}, muon={self.muon}"
        )


def _check_layer(
    dim: int,
    n_heads: int,
    hidden_ratio: float,
    mode: str,
    chunk_size: int | None,
    window_size: int | None,
    base_rate: float,
) -> None:
    if n_heads < 1 or dim < 1 or dim % n_heads:
        raise ValueError(f"dim must be a positive multiple of n_heads, got dim={dim}, n_heads={n_heads}")
    if not hidden_ratio > 0:
        raise ValueError(f"hidden_ratio must be above 0, got {hidden_ratio!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {list(MODES)}, got {mode!r}")
    if chunk_size is not None:
        check_chunk_size(chunk_size)
        if mode == "operators":
            raise ValueError(f'chunk_size must be None with mode="operators", got {chunk_size}')
    if window_size is not None and (not mode.startswith("causal") or window_size < 1):
        raise ValueError(
            f'window_size must be None, or 1 or more in a causal mode, got {window_size!r} with mode="{mode}"'
        )
    if not base_rate > 0:
        raise ValueError(f"base_rate must be above 0, got {base_rate!r}")
