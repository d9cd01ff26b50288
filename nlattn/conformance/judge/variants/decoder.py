"""Lengths, offsets, sinks, slopes and dropout of a decoder's attention gone wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant
from nlattn.conformance.judge.variants.dense import BLOCKS, OPTIONS, given, of, stages
from nlattn.oracle.dense import Stages

CORNER = "bottom-right"


def offset(c: Call) -> Result:
    """By how much the keys of a query are moved: a number, or one for each head."""
    found = c.get("causal_offset", 0)
    if not isinstance(found, str):
        return found
    n, m = c["q"].shape[-2], c["k"].shape[-2]
    return np.asarray(c.get("key_lengths", m)) - np.asarray(c.get("query_lengths", n))


def _corner(shift: Callable[[Call], int | Array]) -> Run:
    def moved(c: Call) -> Result:
        if c.get("causal_offset") != CORNER:
            raise ValueError
        return shift(c)

    return given(causal_offset=moved)


def _of_all(name: str, of_all: Callable[[Call], int]) -> Run:
    """As if a length were that of the whole array; what is aligned by it stays."""
    return of(
        lambda c: c.given(causal_offset=np.asarray(offset(c))).given(
            **{name: of_all(c) + 0 * c[name]}
        )()
    )


def _first(name: str) -> Run:
    """What all heads take of the first."""

    def run(c: Call) -> Result:
        x = c[name]
        if np.size(x) < 2:
            raise ValueError
        return c.given(**{name: 0 * x + x.reshape(-1)[0]})()

    return of(run)


def _first_row(name: str) -> Run:
    """What all queries take of the first."""

    def run(c: Call) -> Result:
        x = c[name]
        if c.get("mask_block") is not None or x.ndim < 2 or x.shape[-2] < 2:
            raise ValueError
        return c.given(**{name: np.broadcast_to(x[..., :1, :], x.shape).copy()})()

    return run


def _first_offset(c: Call) -> Result:
    moved = np.asarray(offset(c))
    if moved.size < 2:
        raise ValueError
    return c.given(causal_offset=0 * moved + moved.reshape(-1)[0])()


def _one_sequence(c: Call) -> Result:
    n, m = c["cu_seqlens_q"][-1], c["cu_seqlens_k"][-1]
    return c.given(cu_seqlens_q=np.array([0, n]), cu_seqlens_k=np.array([0, m]))()


def _global(c: Call) -> Result:
    """Sequences apart, but causal by the numbers that rows have in the whole."""
    plain = c.given(causal=None, window=None)
    n, m = c["q"].shape[-2], c["k"].shape[-2]
    if not c.get("causal"):
        raise ValueError
    corner = c["cu_seqlens_k"][-1] - c["cu_seqlens_q"][-1] if offset_is_corner(c) else 0
    mask = np.arange(m) <= np.arange(n)[:, None] + corner
    return plain.given(mask=mask if c.get("mask") is None else mask & c["mask"])()


def offset_is_corner(c: Call) -> bool:
    """Whether the last query sees the last key."""
    return isinstance(c.get("causal_offset"), str)


def _about(c: Call) -> str:
    if c["window"] is None:
        raise ValueError
    return "query" if c.get("window_about") == "offset" else "offset"


def _ends(c: Call) -> Result:
    """The last key of each packed sequence left out."""
    m = c["k"].shape[-2]
    mask = ~np.isin(np.arange(m), c["cu_seqlens_k"][1:] - 1)[None]
    return c.given(mask=mask if c.get("mask") is None else mask & c["mask"])()


def _skipped(c: Call) -> Result:
    """Sequences without queries left out of one list, so that later ones have others' keys."""
    of_q = np.asarray(c["cu_seqlens_q"])
    kept = of_q[np.concatenate([[True], np.diff(of_q) > 0])]
    if len(kept) == len(of_q):
        raise ValueError
    return c.given(cu_seqlens_q=kept, cu_seqlens_k=c["cu_seqlens_k"][: len(kept)])()


def _without_one(which: int) -> Run:
    """A packed sequence left out; one that has queries and keys."""

    def run(c: Call) -> Result:
        starts = np.asarray(c["cu_seqlens_q"])
        of_k = np.asarray(starts if c.get("cu_seqlens_k") is None else c["cu_seqlens_k"])
        own = np.flatnonzero((np.diff(starts) > 0) & (np.diff(of_k) > 0))[which]
        n, m = c["q"].shape[-2], c["k"].shape[-2]
        i, j = np.arange(n)[:, None], np.arange(m)
        mask = ((i < starts[own]) | (i >= starts[own + 1])) & (j >= 0)
        return c.given(mask=mask if c.get("mask") is None else mask & c["mask"])()

    return of(run)


def _sinking(power: Callable[[Call, Stages, Array], Array]) -> Run:
    """With something else than the sink's exponential in the normaliser, less the maximum's."""

    def run(c: Call) -> Result:
        plain = stages(c.given(sinks=None, dropout_mask=None))
        top = plain.masked.real.max(-1, keepdims=True, initial=-np.inf)
        top = np.maximum(top, np.where(_present(c), _sink(c), -np.inf).real)
        top = np.where(np.isneginf(top), 0, top)
        powers = np.where(np.isneginf(plain.masked.real), 0, np.exp(plain.masked - top))
        total = powers.sum(-1, keepdims=True) + np.where(_present(c), power(c, plain, top), 0)
        return (powers / np.where(total == 0, 1, total)) @ _values(c, plain)

    return of(run)


def _values(c: Call, st: Stages) -> Array:
    v: Array = c["v"]
    return np.repeat(v, st.out.shape[-3] // v.shape[-3], -3) if c.get("gqa") else v


def _present(c: Call) -> Array:
    n = c["q"].shape[-2]
    return np.asarray(
        np.arange(n)[:, None] < np.asarray(c.get("query_lengths", n))[..., None, None]
    )


def _sink(c: Call) -> Array:
    return np.asarray(c["sinks"])[..., None, None]


def _own_lse(c: Call) -> Result:
    """The output, and lse of the keys alone."""
    c["return_lse"]
    st, plain = stages(c), stages(c.given(sinks=None))
    return st.out, plain.lse / np.log(2) if c.get("lse_base") == "2" else plain.lse


def _linear(bias: Callable[[Call, Array], Array]) -> Run:
    """Another bias in place of the linear one, from ``i - j``."""

    def run(c: Call) -> Result:
        slopes = np.asarray(c["alibi"])[..., None, None]
        i, j = np.arange(c["q"].shape[-2])[:, None], np.arange(c["k"].shape[-2])
        moved = np.asarray(offset(c))[..., None, None]
        more = -slopes * bias(c, i + moved - j)
        before = c.get("bias")
        return c.given(alibi=None, bias=more if before is None else before + more)()

    return of(run)


def _unkept(c: Call) -> Result:
    """Dropped weights leave the normaliser, too."""
    mask = c.get("mask")
    kept = c["dropout_mask"]
    return c.given(
        dropout_mask=None, dropout_scale=None, mask=kept if mask is None else mask & kept
    )()


def _normalised(how: Callable[[Array, float], Array], names: str = "qk") -> Run:
    def run(c: Call) -> Result:
        eps = c["qk_norm"]
        return c.given(qk_norm=None, **{name: how(c[name], eps) for name in names})()

    return of(run)


def _root(x: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps))


def _padded_lengths(block: int) -> Run:
    """Lengths rounded up to blocks, of keys that are 0 where there are none."""

    def run(c: Call) -> Result:
        lengths, m = np.asarray(c["key_lengths"]), c["k"].shape[-2]
        more = np.minimum(-(-lengths // block) * block if block > 1 else lengths + 1, m)
        own = (np.arange(m) < lengths[..., None])[..., None]
        if np.array_equal(more, lengths) or (c.get("gqa") and lengths.ndim > c["k"].ndim - 2):
            raise ValueError
        blank = {name: np.where(own, c[name], 0) for name in "kv"}
        return c.given(causal_offset=np.asarray(offset(c))).given(**blank, key_lengths=more)()

    return of(run)


def _rms(x: Array) -> Array:
    return np.asarray(np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1]))


def _whole_blocks(c: Call) -> Result:
    """Keys of the last block, which is not whole, left out."""
    columns = c["mask_block"] if np.ndim(c["mask_block"]) == 0 else c["mask_block"][1]
    mask = c["mask"].copy()
    if not c["k"].shape[-2] % columns:
        raise ValueError
    mask[..., -1] = False
    return c.given(mask=mask)()


def _swapped_blocks(beyond: bool | None) -> Run:
    """Blocks of as many queries as they have keys, and the other way round.

    What lies beyond the mask is allowed, or not; None: as the last blocks are.
    """

    def run(c: Call) -> Result:
        rows, columns = c["mask_block"]
        if rows == columns:
            raise ValueError
        n, m = c["q"].shape[-2], c["k"].shape[-2]
        mask = c["mask"]
        i, j = np.arange(n)[:, None] // columns, np.arange(m) // rows
        inside = (i < mask.shape[-2]) & (j < mask.shape[-1])
        pairs = mask[..., np.minimum(i, mask.shape[-2] - 1), np.minimum(j, mask.shape[-1] - 1)]
        pairs = pairs if beyond is None else np.where(inside, pairs, beyond)
        return c.given(mask_block=None, mask=pairs)()

    return of(run)


def _open_tails(axes: tuple[int, ...]) -> Run:
    """Blocks cut off at the end of queries, or of keys, allowed whatever the mask says."""

    def run(c: Call) -> Result:
        mask, block = c["mask"].copy(), np.broadcast_to(c["mask_block"], 2)
        sizes = (c["q"].shape[-2], c["k"].shape[-2])
        cut = [axis for axis in axes if sizes[axis] % block[axis]]
        if not cut:
            raise ValueError
        for axis in cut:
            np.moveaxis(mask, axis - 2, 0)[-1] = True
        return c.given(mask=mask)()

    return of(run)


def _sinks_in_base_2(c: Call) -> Result:
    if c["lse_base"] != "2":
        raise ValueError
    return c.given(sinks=c["sinks"] * np.log(2))()


VARIANTS = tuple(
    Variant(name, (*OPTIONS, "sinks") if "sink" in name else OPTIONS, run)
    for name, run in (
        ("with packed sequences seeing each other", of(_one_sequence)),
        ("causal by places in the whole pack", of(_global)),
        (
            "with keys packed as queries are",
            of(lambda c: c.given(cu_seqlens_k=np.minimum(c["cu_seqlens_q"], c["k"].shape[-2]))()),
        ),
        ("with the last key of each packed sequence left out", of(_ends)),
        ("with sequences without queries left out of the list", of(_skipped)),
        ("without the last of the packed sequences", _without_one(-1)),
        ("without the first of the packed sequences", _without_one(0)),
        ("without the key lengths", _of_all("key_lengths", lambda c: c["k"].shape[-2])),
        (
            "with the padding of queries computed",
            _of_all("query_lengths", lambda c: c["q"].shape[-2]),
        ),
        ("with the first sequence's number of keys for all", _first("key_lengths")),
        ("with the first sequence's causal offset for all", of(_first_offset)),
        ("causal from the top left corner", _corner(lambda _: 0)),
        (
            "causal from the corner of the padded arrays",
            _corner(lambda c: c["k"].shape[-2] - c["q"].shape[-2]),
        ),
        ("causal from the corner, one key too few", _corner(lambda c: np.asarray(offset(c)) - 1)),
        ("causal from the corner, one key too many", _corner(lambda c: np.asarray(offset(c)) + 1)),
        (
            "with the window about the query itself, or moved where it should not be",
            given(window_about=_about),
        ),
        ("without the sinks", of(lambda c: c.given(sinks=c["sinks"] * 0 - 1e4)())),
        (
            "with the sinks scaled like the scores",
            of(lambda c: c.given(sinks=c.scale * c["sinks"])()),
        ),
        (
            "with the sinks capped like the scores",
            of(lambda c: c.given(sinks=c["softcap"] * np.tanh(c["sinks"] / c["softcap"]))()),
        ),
        ("with the first head's sink for all", _first("sinks")),
        (
            "with the sinks themselves in the normaliser, not their exponentials",
            _sinking(lambda c, _, __: _sink(c)),
        ),
        (
            "with the sinks' exponentials not shifted by the maximum",
            _sinking(lambda c, _, __: np.exp(_sink(c))),
        ),
        ("with sinks in base 2, as lse is", of(_sinks_in_base_2)),
        (
            "with the sinks counted twice, once for each half of the keys",
            of(lambda c: c.given(sinks=c["sinks"] + np.log(2))()),
        ),
        ("with a sink of 0", of(lambda c: c.given(sinks=0 * c["sinks"])())),
        ("with lse without the sinks", _own_lse),
        ("with the first query's bias for all", of(_first_row("bias"))),
        ("with the first query's mask for all", of(_first_row("mask"))),
        ("without the linear bias", of(lambda c: c.given(alibi=0 * c["alibi"])())),
        ("with the linear bias's sign turned", of(lambda c: c.given(alibi=-c["alibi"])())),
        ("with a linear bias of the signed distance", _linear(lambda _, x: x)),
        (
            "with a linear bias without the causal offset",
            _linear(lambda c, x: abs(x - np.asarray(offset(c))[..., None, None])),
        ),
        (
            "with a linear bias scaled like the scores",
            of(lambda c: c.given(alibi=c.scale * c["alibi"])()),
        ),
        ("with the first head's slope for all", _first("alibi")),
        ("with lse in base e", lambda c: c.given(lse_base="e" if c["lse_base"] == "2" else None)()),
        ("without the last block of keys, which is not whole", of(_whole_blocks)),
        ("with the axes of blocks swapped", _swapped_blocks(None)),
        ("with the axes of blocks swapped, and what is beyond hidden", _swapped_blocks(False)),
        ("with the axes of blocks swapped, and what is beyond allowed", _swapped_blocks(True)),
        ("with the cut-off last blocks allowed", _open_tails((0, 1))),
        ("with the cut-off last block of queries allowed", _open_tails((0,))),
        ("with the cut-off last block of keys allowed", _open_tails((1,))),
        ("with one key of zeros beyond the key lengths, which counts", _padded_lengths(1)),
        *(
            (
                f"with key lengths up to a multiple of {b}, of keys of zeros, which count",
                _padded_lengths(b),
            )
            for b in BLOCKS
        ),
        (
            "without dropout",
            of(lambda c: c.given(dropout_mask=c["dropout_mask"] | True, dropout_scale=None)()),
        ),
        (
            "without the scale of dropout",
            of(lambda c: c.given(dropout_scale=None if c["dropout_scale"] else 0)()),
        ),
        ("with dropout inverted", of(lambda c: c.given(dropout_mask=~c["dropout_mask"])())),
        ("with dropout before the normaliser", of(_unkept)),
        (
            "without normalised queries and keys",
            of(lambda c: c.given(qk_norm=None if c["qk_norm"] else 0)()),
        ),
        (
            "with queries and keys of length 1",
            _normalised(lambda x, eps: x / np.sqrt((x * x).sum(-1, keepdims=True) + eps)),
        ),
        ("with normalised queries alone", _normalised(_root, "q")),
        ("with normalised keys alone", _normalised(_root, "k")),
        ("with eps added after the root", _normalised(lambda x, eps: x / (_rms(x) + eps))),
        ("with eps forgotten in the norm", _normalised(lambda x, _: x / _rms(x))),
    )
)
