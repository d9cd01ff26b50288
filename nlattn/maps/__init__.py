"""Attention maps as linear operators, one file per structure.

It imports none of them: two threads, one in a file, one here, would wait for each other.
"""
