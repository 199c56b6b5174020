from . import run_diagnosis as run_diagnosis
from .bisect import Bisection as Bisection
from .drift import Drift as Drift
