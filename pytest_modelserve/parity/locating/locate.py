"""Where two models first part: the question as users ask it; what answers it loads onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_modelserve.parity.locating.divergence import Divergence

if TYPE_CHECKING:
    from pytest_modelserve.parity.locating.pairing import Model
    from pytest_modelserve.parity.predicting import Inputs


def locate_divergence(candidate: Model, reference: Model, inputs: Inputs) -> Divergence | None:
    """The first node of `candidate` that errs on the values that `reference` has before it; None where none does.

    Both are an artifact, a path, or a predictor of one; `inputs` is one array or a mapping from input names to arrays,
    as for `predict`. The graphs are held against each other at every tensor that has one name in both. Stretches
    between such tensors that are equal, operators, attributes and weights, cannot differ and are passed over; every
    other is run by onnxruntime, unoptimised and on one thread, on the reference's own values, so that a difference is
    seen where it arises and not where it arrives. The first in the reference's order that is off by more than rounding
    is the divergence. Between a float model and a quantised or fp16 one, a stretch may lose signal down to the floor
    of that precision (int4 18 dB, int8 25, fp16 55).

    Where no operator errs but the answers differ, the first tensor beyond bounds is told with `local` False; likewise
    where only the optimised graphs differ. None also where both the plain and the optimised answers are equal.

    UsageError for a predictor without a file and for models without a common input or output, InputError for inputs
    that do not fit or on which the reference does not run, ArtifactError for a file that cannot be opened.
    """
    from pytest_modelserve.parity.locating.pairing import pair_of
    from pytest_modelserve.parity.locating.walk import located

    return located(pair_of(candidate, reference, inputs))
