"""The arithmetic, one file per structure of attention: forward beside gradient."""
