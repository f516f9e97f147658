"""The methods, each in a file of its own, named as its paper names it."""

from ssl_zoo.methods.amcl import AMCL
from ssl_zoo.methods.amcl_barlow_twins import AMCLBarlowTwins
from ssl_zoo.methods.amcl_moco import AMCLMoCo
from ssl_zoo.methods.barlow_twins import BarlowTwins
from ssl_zoo.methods.dcl import DCL, DCLW
from ssl_zoo.methods.mochi import MoCHi
from ssl_zoo.methods.moco import MoCo
from ssl_zoo.methods.moco_v3 import MoCoV3
from ssl_zoo.methods.pixcontrast import PixContrast
from ssl_zoo.methods.pixpro import PixPro
from ssl_zoo.methods.simclr import SimCLR
from ssl_zoo.methods.swav import SwAV

__all__ = ["AMCL", "DCL", "DCLW", "AMCLBarlowTwins", "AMCLMoCo", "BarlowTwins", "MoCHi", "MoCo", "MoCoV3",
           "PixContrast", "PixPro", "SimCLR", "SwAV"]
