"""How cost grows with n: counted work first, then time, memory and quality."""

from nlattn.scaling.claims import assert_complexity as assert_complexity
from nlattn.scaling.growth import growth as growth
from nlattn.scaling.judge import GrowthVerdict as GrowthVerdict
from nlattn.scaling.judge import judge as judge
