from . import engine as engine
from . import families as families
from . import file as file
from .engine import Fused as Fused
from .rewrite import Applied as Applied
from .rewrite import Change as Change
from .rewrite import Refusal as Refusal
