"""Reference implementations: plain NumPy, literal to the papers, slow. Imports NumPy alone."""
