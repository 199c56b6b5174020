"""The version of bertc, where everything below the package itself can read it."""

VERSION = "0.1.0"
