"""The LaCT layer: slow projections around SwiGLU fast weights that are trained while the layer runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from tttabpfn.lact.functional import lact_swiglu
from tttabpfn.lact.layer_checks import check_call, check_layer, check_lengths_of_rows
from tttabpfn.lact.packing import packed_window_attention
from tttabpfn.lact.projections import initialise, merge, project, set_operators
from tttabpfn.lact.state import LaCTState
from tttabpfn.lact.streaming import lact_swiglu_resume
from tttabpfn.lact.sum_state import SumState
from tttabpfn.lact.window import window_attention, window_attention_after

__all__ = ["LaCTSwiGLU"]

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
    updated : {"all", "last"}, default="all"
        "last": the fast weights' last layer alone is updated, see `lact_swiglu`.
    weight_norm : bool, default=True
        Whether rows of the fast weights get back their norm after an update.
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
        updated: str = "all",
        weight_norm: bool = True,
        base_rate: float = 0.01,
        backend: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_layer(dim, n_heads, hidden_ratio, mode, chunk_size, window_size, base_rate, updated)
        self.dim, self.n_heads, self.mode, self.window_size = dim, n_heads, mode, window_size
        self.chunk_size = 2048 if chunk_size is None and mode.startswith("causal") else chunk_size
        self.muon, self.backend = muon, backend
        self.newton_schulz = newton_schulz
        self.newton_schulz_steps = newton_schulz_steps
        self.newton_schulz_dtype = newton_schulz_dtype
        self.updated, self.weight_norm = updated, weight_norm
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
        initialise(self, generator)

    def forward(
        self,
        x: Tensor,
        operators: Sequence[Operator] | None = None,
        *,
        lengths: Sequence[int] | Sequence[Sequence[int]] | None = None,
        group: Any = None,
    ) -> Tensor:
        """Run the layer.

        Parameters
        ----------
        x : Tensor of shape [n, l, dim]
        operators : list of (start, end, update, apply), optional
            Needed for ``mode="operators"``, refused otherwise; see `lact_swiglu`.
        lengths : list of int, or n lists of int, optional
            Lengths of the sequences that lie one behind the other in a row: the same for every row, or a list per row
            (not with operators). Nothing passes from one sequence to the next.
        group : torch.distributed.ProcessGroup, optional
            Processes that share the sequence; x is this one's part, see `tttabpfn.lact.parallel`.

        Returns
        -------
        Tensor of shape [n, l, dim]
            For ``mode="operators"`` as long as the applied windows together.

        Raises
        ------
        ValueError
            If a shape, `operators` or `lengths` does not fit.
        """
        check_call(self, x, operators, group)
        if lengths is not None and check_lengths_of_rows(lengths, x, self.mode):
            flat = [one for row in lengths for one in row]  # type: ignore[union-attr]
            return self.forward(x.reshape(1, -1, self.dim), lengths=flat).reshape(x.shape)
        own: list[int] | None = None if lengths is None else list(lengths)  # type: ignore[arg-type]
        made = project(self, x)
        causal = self.mode.startswith("causal")
        o, _ = lact_swiglu(
            *self._fast_weights(x.shape[0]),
            *made.tokens,
            order=self.mode if causal else "operators",
            chunk_size=self._share(group) if causal else None,
            operators=None if causal else operators or set_operators(own or [x.shape[1]], self._share(group)),
            lengths=own,
            momentum=made.momentum,
            group=group,
            **self._rule(),
        )
        o = self.output_norm(o)
        if self.window_size is not None and own is None:
            o = o + window_attention(*made.raw, self.window_size)
        elif self.window_size is not None:
            o = o + packed_window_attention(*made.raw, self.window_size, own or [])
        return merge(self, o)

    def prefill(self, x: Tensor, state: LaCTState | None = None) -> tuple[Tensor, LaCTState]:
        """Run the next tokens of causal sequences and hand on the state.

        Parameters
        ----------
        x : Tensor of shape [n, l, dim]
        state : LaCTState, optional
            Of the tokens before. None: the sequences start here.

        Returns
        -------
        y : Tensor of shape [n, l, dim]
            What `forward` on the whole sequence has at these tokens, up to rounding.
        state : LaCTState

        Raises
        ------
        ValueError
            If the layer is not causal, or a shape or the state does not fit.
        """
        if not self.mode.startswith("causal"):
            raise ValueError(f'mode must be "causal" or "causal-prenorm" for prefill and decode, got "{self.mode}"')
        check_call(self, x, None, None)
        made = project(self, x)
        o, after = lact_swiglu_resume(
            *self._fast_weights(x.shape[0]),
            *made.tokens,
            state=state,
            order=self.mode,
            chunk_size=self.chunk_size or 0,
            momentum=made.momentum,
            **self._rule(),
        )
        o = self.output_norm(o)
        if self.window_size is not None:
            q, k, v = made.raw
            past = {"k": k[:, :0], "v": v[:, :0]} if state is None else state.window
            attended, keys, values = window_attention_after(q, k, v, self.window_size, past["k"], past["v"])
            o, after = o + attended, replace(after, window={"k": keys, "v": values})
        return merge(self, o), after

    def decode(self, x: Tensor, state: LaCTState) -> tuple[Tensor, LaCTState]:
        """Run one more token, or a few, of causal sequences: `prefill` that does not take the start of a sequence.

        Parameters
        ----------
        x : Tensor of shape [n, l, dim]
        state : LaCTState

        Returns
        -------
        y : Tensor of shape [n, l, dim]
        state : LaCTState

        Raises
        ------
        ValueError
            As `prefill`, and if there is no state.
        """
        if not isinstance(state, LaCTState):
            raise ValueError(f"state must be a LaCTState from prefill or decode, got {type(state).__name__}")
        return self.prefill(x, state)

    def write(self, x: Tensor) -> SumState:
        """Sum over tokens [n, l, dim] of a layer in the form of `SumState`; add, subtract and merge what it returns.

        Raises
        ------
        ValueError
            Unless ``updated="last"``, ``weight_norm=False``, ``muon=False`` and ``momentum=False``.
        """
        if self.updated != "last" or self.weight_norm or self.muon or self.to_momentum is not None:
            raise ValueError(
                'a state that is a sum needs updated="last", weight_norm=False, muon=False and momentum=False, got '
                f"{self.updated!r}, {self.weight_norm}, {self.muon} and {self.to_momentum is not None}"
            )
        check_call(self, x, None if self.mode != "operators" else [], None)
        w0, _, w2 = self._fast_weights(x.shape[0])
        _, k, v, _, lr1, _ = project(self, x).tokens
        return SumState.of(w0, w2, k, v, lr1)

    def read(self, x: Tensor, state: SumState) -> Tensor:
        """Outputs of tokens [n, l, dim] under a state that `write` made: what ``mode="set"`` gives targets."""
        check_call(self, x, None if self.mode != "operators" else [], None)
        w0, w1, w2 = self._fast_weights(x.shape[0])
        o = state.read(w0, w1, w2, project(self, x).tokens[0])
        return merge(self, self.output_norm(o))

    def _fast_weights(self, batch: int) -> tuple[Tensor, ...]:
        """Starting fast weights of every row and head."""
        return tuple(weight.repeat(batch, 1, 1) for weight in (self.w0, self.w1, self.w2))

    def _rule(self) -> dict[str, Any]:
        names = ("muon", "newton_schulz", "newton_schulz_steps", "newton_schulz_dtype")
        return {name: getattr(self, name) for name in (*names, "updated", "weight_norm", "backend")}

    def _share(self, group: Any) -> int | None:
        """Tokens of a chunk that this process holds."""
        return self.chunk_size if group is None or self.chunk_size is None else self.chunk_size // group.size()

    def extra_repr(self) -> str:
        """Return the settings that ``print(layer)`` shows."""
        return (
            f"dim={self.dim}, n_heads={self.n_heads}, mode={self.mode!r}, chunk_size={self.chunk_size}, "
            f"window_size={self.window_size}, muon={self.muon}"
        )
