from . import engines as engines
from .request import PRECISIONS as PRECISIONS
from .request import TARGETS as TARGETS
from .request import Budget as Budget
from .request import Request as Request
from .run import Found as Found
from .run import search as search
from .space import Candidate as Candidate
