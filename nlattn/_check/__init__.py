"""The one place that words an input error, and folds arrays for the kernels.

Every error reads ``op: argument is what, expected what; remedy.``
"""

from nlattn._check.arrays import *
from nlattn._check.beside import *
from nlattn._check.words import *
