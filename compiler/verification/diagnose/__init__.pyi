from . import commands as commands
from .bisect import Bisection as Bisection
from .drift import Drift as Drift
