from .pages import artifact_page as artifact_page
from .pages import fleet_page as fleet_page
from .pages import save as save
from .pages import unavailable as unavailable
from .pages import write as write
