from . import buckets as buckets
from . import recipe_edit as recipe_edit
from . import traffic as traffic
from .buckets import BucketPlan as BucketPlan
from .traffic import TrafficModel as TrafficModel
