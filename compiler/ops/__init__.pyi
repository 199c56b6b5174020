from . import expansion as expansion
from .builder import EPSILON as EPSILON
from .builder import Body as Body
from .builder import gelu as gelu
from .builder import padded_inputs as padded_inputs
from .expansion import expand as expand
from .registry import MASK_INPUTS as MASK_INPUTS
