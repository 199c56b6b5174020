from .repository import Named as Named
from .repository import Package as Package
from .repository import package as package
