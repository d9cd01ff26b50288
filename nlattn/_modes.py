"""Modes of public options: closed sets of words, which an editor completes and a call checks."""

from __future__ import annotations

from typing import Literal, TypeAlias

Nonfinite: TypeAlias = Literal["raise", "propagate"]
MaskedRows: TypeAlias = Literal["zero", "nan", "raise"]
LseBase: TypeAlias = Literal["e", "2"]
About: TypeAlias = Literal["query", "offset"]
"""What a window is about."""
Beyond: TypeAlias = Literal["raise", "empty"]

Score: TypeAlias = Literal["dot", "cosine", "neg_l2", "absdot"]
NearestScore: TypeAlias = Literal["dot", "cosine", "neg_l2"]
Propagate: TypeAlias = Literal["same", "shift", "both"]
SearchMethod: TypeAlias = Literal["buffered", "exact", "certified"]
Candidates: TypeAlias = Literal["random", "tree"]
SupportKind: TypeAlias = Literal["window", "neighbours", "topk", "local", "union"]

Weight: TypeAlias = Literal["softmax", "gaussian", "abspow", "dot"]
"""Of edges."""
SoftmaxOrGaussian: TypeAlias = Literal["softmax", "gaussian"]
Lattice: TypeAlias = Literal["published", "complete"]
StraightThrough: TypeAlias = Literal["identity", "clip", "none"]
Pairwise: TypeAlias = Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"]

Normalization: TypeAlias = Literal["softmax", "scaling"]
Kernel: TypeAlias = Literal["softmax", "relu", "none"]
Stabilizer: TypeAlias = Literal["neutral", "max", "none"]
StabilizerGradient: TypeAlias = Literal["exact", "detached"]
Role: TypeAlias = Literal["query", "key"]
Norms: TypeAlias = Literal["chi", "sqrt_d"]

KeyChoice: TypeAlias = Literal["leverage", "norm", "random", "oracle"]
LeverageMethod: TypeAlias = Literal["qr", "svd", "gram"]
StreamMethod: TypeAlias = Literal["qr", "gram"]
Sketch: TypeAlias = Literal["countsketch", "srht"]
Normaliser: TypeAlias = Literal["auto", "factor", "dense", "sampled"]

Border: TypeAlias = Literal["reflect", "edge"]
SelfWeight: TypeAlias = Literal["max", "one", "zero"]
PatchSearch: TypeAlias = Literal["window", "patchmatch", "union"]
AllPixels: TypeAlias = Literal["certified"]
"""In place of a support: all of them, to a tolerance."""
PatchChoice: TypeAlias = Literal["nearest", "statistical"]
Aggregate: TypeAlias = Literal["patch", "pixel"]
Pad: TypeAlias = Literal["edge", "reflect", "zero", "error"]
Overlap: TypeAlias = Literal["average", "mass", "divide"]
Assign: TypeAlias = Literal["softmax", "argmax"]
Crop: TypeAlias = Literal["exact", "published"]

Form: TypeAlias = Literal["port", "original"]
"""Of SAGAN's block."""
Convention: TypeAlias = Literal["pytorch", "caffe2"]
Gate: TypeAlias = Literal["normal", "normal_elementwise", "ones", "avg", "posneg", "none"]
Position: TypeAlias = Literal["relative_pos", "absolute_pos", "contextual_pos", "none"]
