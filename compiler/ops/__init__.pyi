from . import expansion as expansion
from .builder import EPSILON as EPSILON
from .builder import Body as Body
from .builder import gelu as gelu
from .builder import inputs as inputs
from .expansion import expand as expand
from .registry import ADDED as ADDED
