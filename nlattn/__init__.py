"""Ground truth for efficient non-local attention, on the CPU: NumPy arrays in, NumPy arrays out.

Names are resolved on first use, so ``import nlattn`` loads neither Numba nor SciPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nlattn.runtime import helpers

if TYPE_CHECKING:
    from nlattn._types import Field as Field
    from nlattn._types import Nearest as Nearest
    from nlattn._types import Signs as Signs
    from nlattn._types import Simplices as Simplices
    from nlattn._types import Support as Support
    from nlattn._types import Work as Work
    from nlattn.maps.base import AttentionMap as AttentionMap
    from nlattn.maps.io import load_map as load_map
    from nlattn.maps.on_disk import open_map as open_map
    from nlattn.ops.certified import certified_attention as certified_attention
    from nlattn.ops.certified import certified_attention_jvp as certified_attention_jvp
    from nlattn.ops.certified import certified_attention_map as certified_attention_map
    from nlattn.ops.certified import certified_attention_vjp as certified_attention_vjp
    from nlattn.ops.cross_scale import cross_scale_attention as cross_scale_attention
    from nlattn.ops.cross_scale import cross_scale_attention_jvp as cross_scale_attention_jvp
    from nlattn.ops.cross_scale import cross_scale_attention_map as cross_scale_attention_map
    from nlattn.ops.cross_scale import cross_scale_attention_vjp as cross_scale_attention_vjp
    from nlattn.ops.cross_scale import downscale as downscale
    from nlattn.ops.cross_scale import downscale_vjp as downscale_vjp
    from nlattn.ops.dense import attention as attention
    from nlattn.ops.dense import attention_map as attention_map
    from nlattn.ops.dense import attention_vjp as attention_vjp
    from nlattn.ops.efficient import efficient_attention as efficient_attention
    from nlattn.ops.efficient import efficient_attention_jvp as efficient_attention_jvp
    from nlattn.ops.efficient import efficient_attention_map as efficient_attention_map
    from nlattn.ops.efficient import efficient_attention_vjp as efficient_attention_vjp
    from nlattn.ops.efficient import efficient_context as efficient_context
    from nlattn.ops.enla import enla as enla
    from nlattn.ops.enla import enla_jvp as enla_jvp
    from nlattn.ops.enla import enla_map as enla_map
    from nlattn.ops.enla import enla_vjp as enla_vjp
    from nlattn.ops.enla import enlca_loss as enlca_loss
    from nlattn.ops.enla import enlca_loss_jvp as enlca_loss_jvp
    from nlattn.ops.enla import enlca_loss_vjp as enlca_loss_vjp
    from nlattn.ops.favor import favor_attention as favor_attention
    from nlattn.ops.favor import favor_attention_jvp as favor_attention_jvp
    from nlattn.ops.favor import favor_attention_map as favor_attention_map
    from nlattn.ops.favor import favor_attention_vjp as favor_attention_vjp
    from nlattn.ops.features import linear_attention as linear_attention
    from nlattn.ops.features import orthogonal_features as orthogonal_features
    from nlattn.ops.features import positive_features as positive_features
    from nlattn.ops.forward_mode import attention_jvp as attention_jvp
    from nlattn.ops.forward_mode import neighbourhood_attention_jvp as neighbourhood_attention_jvp
    from nlattn.ops.forward_mode import sparse_attention_jvp as sparse_attention_jvp
    from nlattn.ops.hamming import hamming_attention as hamming_attention
    from nlattn.ops.hamming import hamming_attention_jvp as hamming_attention_jvp
    from nlattn.ops.hamming import hamming_attention_map as hamming_attention_map
    from nlattn.ops.hamming import hamming_attention_vjp as hamming_attention_vjp
    from nlattn.ops.hamming import pack_signs as pack_signs
    from nlattn.ops.heavy import heavy_attention as heavy_attention
    from nlattn.ops.indexer import index_loss as index_loss
    from nlattn.ops.indexer import index_loss_jvp as index_loss_jvp
    from nlattn.ops.indexer import index_loss_vjp as index_loss_vjp
    from nlattn.ops.indexer import index_scores as index_scores
    from nlattn.ops.indexer import index_scores_jvp as index_scores_jvp
    from nlattn.ops.indexer import index_scores_vjp as index_scores_vjp
    from nlattn.ops.indexer import share_held as share_held
    from nlattn.ops.indexer import topk_keys as topk_keys
    from nlattn.ops.lev import lev_attention as lev_attention
    from nlattn.ops.lev import lev_attention_jvp as lev_attention_jvp
    from nlattn.ops.lev import lev_attention_map as lev_attention_map
    from nlattn.ops.lev import lev_attention_vjp as lev_attention_vjp
    from nlattn.ops.lev import lev_keys as lev_keys
    from nlattn.ops.leverage import approximate_leverage_scores as approximate_leverage_scores
    from nlattn.ops.leverage import leverage_scores as leverage_scores
    from nlattn.ops.lewis import lewis_weights as lewis_weights
    from nlattn.ops.lewis import lp_sensitivity as lp_sensitivity
    from nlattn.ops.lewis import sensitivity_bounds as sensitivity_bounds
    from nlattn.ops.merge import merge_attention as merge_attention
    from nlattn.ops.merge import merge_attention_jvp as merge_attention_jvp
    from nlattn.ops.merge import merge_attention_vjp as merge_attention_vjp
    from nlattn.ops.nearest import nearest_keys as nearest_keys
    from nlattn.ops.neighbourhood import neighbourhood_attention as neighbourhood_attention
    from nlattn.ops.neighbourhood import neighbourhood_attention_map as neighbourhood_attention_map
    from nlattn.ops.neighbourhood import neighbourhood_attention_vjp as neighbourhood_attention_vjp
    from nlattn.ops.neighbourhood import neighbourhood_support as neighbourhood_support
    from nlattn.ops.nl_means import nl_means as nl_means
    from nlattn.ops.nl_means import nl_means_jvp as nl_means_jvp
    from nlattn.ops.nl_means import nl_means_map as nl_means_map
    from nlattn.ops.nl_means import nl_means_support as nl_means_support
    from nlattn.ops.nl_means import nl_means_vjp as nl_means_vjp
    from nlattn.ops.nonlocal_mean import nonlocal_mean as nonlocal_mean
    from nlattn.ops.nonlocal_mean import nonlocal_mean_jvp as nonlocal_mean_jvp
    from nlattn.ops.nonlocal_mean import nonlocal_mean_map as nonlocal_mean_map
    from nlattn.ops.nonlocal_mean import nonlocal_mean_vjp as nonlocal_mean_vjp
    from nlattn.ops.pages import gather_pages as gather_pages
    from nlattn.ops.pages import gather_pages_vjp as gather_pages_vjp
    from nlattn.ops.pages import paged_attention as paged_attention
    from nlattn.ops.pages import paged_attention_jvp as paged_attention_jvp
    from nlattn.ops.pages import paged_attention_vjp as paged_attention_vjp
    from nlattn.ops.patchmatch import patchmatch as patchmatch
    from nlattn.ops.permutohedral import permutohedral_attention as permutohedral_attention
    from nlattn.ops.permutohedral import permutohedral_attention_jvp as permutohedral_attention_jvp
    from nlattn.ops.permutohedral import permutohedral_attention_map as permutohedral_attention_map
    from nlattn.ops.permutohedral import permutohedral_attention_vjp as permutohedral_attention_vjp
    from nlattn.ops.permutohedral import permutohedral_simplices as permutohedral_simplices
    from nlattn.ops.psal import psal as psal
    from nlattn.ops.psal import psal_jvp as psal_jvp
    from nlattn.ops.psal import psal_map as psal_map
    from nlattn.ops.psal import psal_vjp as psal_vjp
    from nlattn.ops.qna import qna as qna
    from nlattn.ops.qna import qna_jvp as qna_jvp
    from nlattn.ops.qna import qna_map as qna_map
    from nlattn.ops.qna import qna_vjp as qna_vjp
    from nlattn.ops.qna_upsample import qna_upsample as qna_upsample
    from nlattn.ops.qna_upsample import qna_upsample_jvp as qna_upsample_jvp
    from nlattn.ops.qna_upsample import qna_upsample_vjp as qna_upsample_vjp
    from nlattn.ops.refined import channel_mixing as channel_mixing
    from nlattn.ops.refined import refined_self_attention as refined_self_attention
    from nlattn.ops.refined import refined_self_attention_jvp as refined_self_attention_jvp
    from nlattn.ops.refined import refined_self_attention_map as refined_self_attention_map
    from nlattn.ops.refined import refined_self_attention_vjp as refined_self_attention_vjp
    from nlattn.ops.sampled import SampledTruth as SampledTruth
    from nlattn.ops.sampled import sampled_truth as sampled_truth
    from nlattn.ops.scram import scram as scram
    from nlattn.ops.scram import scram_jvp as scram_jvp
    from nlattn.ops.scram import scram_map as scram_map
    from nlattn.ops.scram import scram_support as scram_support
    from nlattn.ops.scram import scram_vjp as scram_vjp
    from nlattn.ops.sparse import sparse_attention as sparse_attention
    from nlattn.ops.sparse import sparse_attention_map as sparse_attention_map
    from nlattn.ops.sparse import sparse_attention_vjp as sparse_attention_vjp
    from nlattn.ops.sparse import support as support
    from nlattn.ops.sparse import support_from_index as support_from_index
    from nlattn.ops.stream import LeverageStream as LeverageStream
    from nlattn.ops.universal import UniversalSet as UniversalSet
    from nlattn.ops.universal import universal_set as universal_set
    from nlattn.ops.wish import scram_for_mass as scram_for_mass
    from nlattn.quality import compare as compare
    from nlattn.quality import compare_all as compare_all
    from nlattn.runtime.threads import max_threads as max_threads
    from nlattn.runtime.threads import set_threads as set_threads
    from nlattn.runtime.threads import threads as threads
    from nlattn.scaling import assert_complexity as assert_complexity

__version__ = "0.1.0"

_HOME = {
    "runtime.threads": ("max_threads", "set_threads", "threads"),
    "_types": ("Field", "Nearest", "Signs", "Simplices", "Support", "Work"),
    "maps.base": ("AttentionMap",),
    "maps.io": ("load_map",),
    "maps.on_disk": ("open_map",),
    "ops.certified": (
        "certified_attention",
        "certified_attention_map",
        "certified_attention_jvp",
        "certified_attention_vjp",
    ),
    "ops.indexer": (
        "index_loss",
        "index_loss_jvp",
        "index_loss_vjp",
        "index_scores",
        "index_scores_jvp",
        "index_scores_vjp",
        "share_held",
        "topk_keys",
    ),
    "ops.merge": (
        "merge_attention",
        "merge_attention_jvp",
        "merge_attention_vjp",
    ),
    "ops.pages": (
        "gather_pages",
        "gather_pages_vjp",
        "paged_attention",
        "paged_attention_jvp",
        "paged_attention_vjp",
    ),
    "ops.cross_scale": (
        "cross_scale_attention",
        "cross_scale_attention_map",
        "cross_scale_attention_jvp",
        "cross_scale_attention_vjp",
        "downscale",
        "downscale_vjp",
    ),
    "ops.dense": ("attention", "attention_map", "attention_vjp"),
    "ops.lev": (
        "lev_attention",
        "lev_attention_map",
        "lev_attention_jvp",
        "lev_attention_vjp",
        "lev_keys",
    ),
    "ops.leverage": ("approximate_leverage_scores", "leverage_scores"),
    "ops.nonlocal_mean": (
        "nonlocal_mean",
        "nonlocal_mean_map",
        "nonlocal_mean_jvp",
        "nonlocal_mean_vjp",
    ),
    "ops.nearest": ("nearest_keys",),
    "ops.neighbourhood": (
        "neighbourhood_attention",
        "neighbourhood_attention_map",
        "neighbourhood_attention_vjp",
        "neighbourhood_support",
    ),
    "ops.nl_means": (
        "nl_means",
        "nl_means_map",
        "nl_means_support",
        "nl_means_jvp",
        "nl_means_vjp",
    ),
    "ops.forward_mode": (
        "attention_jvp",
        "neighbourhood_attention_jvp",
        "sparse_attention_jvp",
    ),
    "ops.hamming": (
        "hamming_attention",
        "hamming_attention_map",
        "hamming_attention_jvp",
        "hamming_attention_vjp",
        "pack_signs",
    ),
    "ops.heavy": ("heavy_attention",),
    "ops.lewis": ("lewis_weights", "lp_sensitivity", "sensitivity_bounds"),
    "ops.patchmatch": ("patchmatch",),
    "ops.permutohedral": (
        "permutohedral_attention",
        "permutohedral_attention_map",
        "permutohedral_attention_jvp",
        "permutohedral_attention_vjp",
        "permutohedral_simplices",
    ),
    "ops.psal": ("psal", "psal_map", "psal_jvp", "psal_vjp"),
    "ops.qna": (
        "qna",
        "qna_map",
        "qna_jvp",
        "qna_vjp",
    ),
    "ops.qna_upsample": (
        "qna_upsample",
        "qna_upsample_jvp",
        "qna_upsample_vjp",
    ),
    "ops.sampled": ("SampledTruth", "sampled_truth"),
    "ops.scram": ("scram", "scram_map", "scram_support", "scram_jvp", "scram_vjp"),
    "ops.sparse": (
        "sparse_attention",
        "sparse_attention_map",
        "sparse_attention_vjp",
        "support",
        "support_from_index",
    ),
    "ops.efficient": (
        "efficient_attention",
        "efficient_attention_map",
        "efficient_attention_jvp",
        "efficient_attention_vjp",
        "efficient_context",
    ),
    "ops.enla": (
        "enla",
        "enla_map",
        "enla_jvp",
        "enla_vjp",
        "enlca_loss",
        "enlca_loss_jvp",
        "enlca_loss_vjp",
    ),
    "ops.favor": (
        "favor_attention",
        "favor_attention_map",
        "favor_attention_jvp",
        "favor_attention_vjp",
    ),
    "ops.features": ("linear_attention", "orthogonal_features", "positive_features"),
    "ops.refined": (
        "channel_mixing",
        "refined_self_attention",
        "refined_self_attention_map",
        "refined_self_attention_jvp",
        "refined_self_attention_vjp",
    ),
    "ops.stream": ("LeverageStream",),
    "ops.universal": ("UniversalSet", "universal_set"),
    "ops.wish": ("scram_for_mass",),
    "quality": ("compare", "compare_all"),
    "scaling": ("assert_complexity",),
}
_SUBMODULES = ("explorer", "images", "layers", "oracle", "plots", "quality", "scaling", "testing")
_ORIGIN = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_ORIGIN), *_SUBMODULES]


def _load(name: str) -> Any:
    """Import a module: one thread at a time, and whole, whatever reaches the caller meanwhile."""
    return helpers.undisturbed(helpers.whole(importlib.import_module), f"nlattn.{name}")


def __getattr__(name: str) -> Any:
    if name in _ORIGIN:
        value = getattr(_load(_ORIGIN[name]), name)
        if _ORIGIN[name].startswith("ops.") and not isinstance(value, type):
            value = _load("tensors").accepting(value, name)
    elif name in _SUBMODULES or name == "torch":
        value = _load(name)
    else:
        raise AttributeError(f"module 'nlattn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
