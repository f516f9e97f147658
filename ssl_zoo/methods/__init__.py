"""The methods, each in a file of its own, named as its paper names it."""

from ssl_zoo.methods.simclr import SimCLR

__all__ = ["SimCLR"]
