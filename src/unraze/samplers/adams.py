"""Adams's predictor and corrector for the probability flow, with x̂_0 a polynomial in ᾱ.

The project's own assembly of known parts: the exact flow in x̂_0 of DPM-Solver++ (arXiv:2211.01095,
prop. 4.1), UniPC's reuse of the corrector's call (arXiv:2302.04867), and weights of Adams's methods
for uneven nodes; only the variable is its own. Published methods extrapolate in λ = ln(ᾱ/β̄), which
is infinite at both ends, and lose their order there. Along the flow x̂_0 is smooth in ᾱ = cos θ,
which is linear in θ where ᾱ_T = 0 and, like x̂_0, even in θ at data.
"""

from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.solver import check_order, combined, picture_weights, usable
from unraze.samplers.step import Step
from unraze.schedule import Schedule

__all__ = ["adams"]


def adams(denoise: Denoiser, x: Tensor, schedule: Schedule, *, order: int = 3) -> Iterator[Step]:
    """x_s = (β̄_s/β̄_t) x_t + Σ_j w_j x̂_0,j,   w_j = β̄_s ∫ ℓ_j(ᾱ) d(ᾱ/β̄) from t to s = t-1.

    ℓ_j are Lagrange's polynomials in ᾱ. x_s is predicted with the last `order` predictions and,
    with that at the predicted x_s, made again with `order` + 1; that prediction is also the next
    step's, so a step costs one call, and the method has order `order` + 1, at most 4. The first
    steps take the predictions there are. With n steps to go a step uses at most n+1 predictions:
    where x̂_0 is settled, long polynomials only carry its past on, and two near data, where
    ᾱ = 1 - θ²/2, leave an error of θ⁴. The last step, x_0 = Σ w_j x̂_0,j, is the line at ᾱ = 1.
    Raises `ValueError` for an order that is not 1, 2 or 3.
    """
    check_order(order, 3)
    nodes: list[int] = []
    known: list[Tensor] = []
    before = x
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=known[0] if known else None)
        nodes, known = [t, *nodes[:order]], [prediction.x0, *known[:order]]
        if len(known) > 1:
            x = _step(schedule, before, t + 1, nodes[: t + 2], known[: t + 2])
        used = usable(order, len(known), t + 1)
        before = x
        x = _step(schedule, before, t, nodes[:used], known[:used])
        yield Step(float(schedule.times[t - 1]), x, prediction)


def _step(schedule: Schedule, x: Tensor, t: int, nodes: list[int], known: list[Tensor]) -> Tensor:
    """From x at step t to t-1 with the polynomial through the predictions at the nodes."""
    kept = float(schedule.beta_bar[t - 1] / schedule.beta_bar[t])
    return kept * x + combined(picture_weights(schedule, t, nodes), known)
