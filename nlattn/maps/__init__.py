"""Attention maps as linear operators, one file per structure."""

from nlattn.maps.base import AttentionMap as AttentionMap
