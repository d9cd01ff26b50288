"""One page that shows where every pixel looks: no server, no network, nothing to install."""

from nlattn.explorer.contents import Layer
from nlattn.explorer.document import page

__all__ = ["Layer", "page"]
