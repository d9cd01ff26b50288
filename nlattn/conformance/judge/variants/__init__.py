"""The catalogue of wrong variants: every way we know of to get an operator wrong.

A variant is an oracle with something about it changed: its options, its arrays, one of its steps,
or its output. What is made from rows comes first, then common traps. They serve gradients, too:
the complex step differentiates an oracle, right or wrong (`diagnosis`).
"""

from __future__ import annotations

from nlattn.conformance.judge.variants import (
    activations,
    alike,
    blocks,
    boxes,
    columns,
    decoder,
    ends,
    grids,
    indexer,
    inputs,
    keys,
    lattice,
    linear,
    masks,
    neighbours,
    online,
    parts,
    published,
    ranks,
    scores,
    tables,
    thresholds,
    votes,
    windows,
)
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.table import find

VARIANTS: tuple[Variant, ...] = (
    *alike.VARIANTS,
    *blocks.VARIANTS,
    *scores.VARIANTS,
    *masks.VARIANTS,
    *decoder.VARIANTS,
    *linear.VARIANTS,
    *online.VARIANTS,
    *ranks.VARIANTS,
    *activations.VARIANTS,
    *grids.VARIANTS,
    *boxes.VARIANTS,
    *columns.VARIANTS,
    *votes.VARIANTS,
    *windows.VARIANTS,
    *neighbours.VARIANTS,
    *keys.VARIANTS,
    *ends.VARIANTS,
    *tables.VARIANTS,
    *thresholds.VARIANTS,
    *lattice.VARIANTS,
    *parts.VARIANTS,
    *published.VARIANTS,
    *indexer.VARIANTS,
    *inputs.VARIANTS,
    *inputs.UNGIVEN,
)

__all__ = ["VARIANTS", "Call", "Variant", "of"]


def of(op: str) -> list[Variant]:
    """Variants that fit an operator: those of the families that its row names."""
    families = {*find(op).wrong, *inputs.ANY}
    return [variant for variant in VARIANTS if families & set(variant.families)]
