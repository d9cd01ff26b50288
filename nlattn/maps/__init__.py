"""Attention maps as linear operators, one file per structure."""

from nlattn.maps.base import AttentionMap as AttentionMap
from nlattn.maps.dense import DenseMap as DenseMap
from nlattn.maps.io import load_map as load_map
from nlattn.maps.sparse import SparseMap as SparseMap
