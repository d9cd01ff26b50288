"""Operators against their oracles: the table of operators that every check is driven by."""
