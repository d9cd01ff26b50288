"""Attention maps as linear operators, one file per structure."""

from nlattn.maps.base import AttentionMap as AttentionMap
from nlattn.maps.concatenation import ConcatenationMap as ConcatenationMap
from nlattn.maps.dense import DenseMap as DenseMap
from nlattn.maps.factored import FactoredMap as FactoredMap
from nlattn.maps.io import load_map as load_map
from nlattn.maps.selected import SelectedMap as SelectedMap
from nlattn.maps.sparse import SparseMap as SparseMap
from nlattn.maps.window import WindowMap as WindowMap
