"""What is right: the oracles' results, and how far rounding may take a backend from them."""
