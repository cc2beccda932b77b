"""Progress bars that are silent unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def progress_bar(verbose: int, total: int) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show a bar on standard error while adapting.

    Parameters
    ----------
    verbose : int
        0 shows nothing and yields None.
    total : int
        Number of steps.

    Yields
    ------
    callable or None
        ``tell(what, done, total)``.
    """
    if not verbose:
        yield None
        return
    with tqdm(total=total, desc="adapting", unit="step") as bar:

        def tell(what: str, done: int, of: int) -> None:
            bar.set_description(what, refresh=False)
            bar.total = of
            bar.n = done
            bar.refresh()

        yield tell
