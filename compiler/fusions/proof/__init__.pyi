from .activations import small_feeds as small_feeds
