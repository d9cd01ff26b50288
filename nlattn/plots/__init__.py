"""Pictures of attention maps: where queries look, which key each matched, what a pixel is given."""

from nlattn.plots.field import match_field
from nlattn.plots.heat import heat
from nlattn.plots.mechanisms import mechanisms
from nlattn.plots.overlay import overlay

__all__ = ["heat", "match_field", "mechanisms", "overlay"]
