from .pages import artifact_page as artifact_page
from .pages import fleet_page as fleet_page
from .pages import save_page as save_page
from .pages import why_no_page as why_no_page
from .pages import write_report as write_report
from .sections import Section as Section
from .sections import sections_page as sections_page
