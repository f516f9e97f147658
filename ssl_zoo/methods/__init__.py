"""The methods, each in a file of its own, named as its paper names it."""

from ssl_zoo.methods.amcl import AMCL
from ssl_zoo.methods.amcl_barlow_twins import AMCLBarlowTwins
from ssl_zoo.methods.amcl_moco import AMCLMoCo
from ssl_zoo.methods.barlow_twins import BarlowTwins
from ssl_zoo.methods.byol import BYOL
from ssl_zoo.methods.cacr import CACR, CACRMoCoV3
from ssl_zoo.methods.dcl import DCL, DCLW
from ssl_zoo.methods.densecl import DenseCL
from ssl_zoo.methods.ft import FT
from ssl_zoo.methods.groco import GroCo
from ssl_zoo.methods.halp import HaLP
from ssl_zoo.methods.hard_contrastive import HardContrastive, HardContrastiveMoCo
from ssl_zoo.methods.interclr import InterCLR
from ssl_zoo.methods.isogclr import ISogCLR
from ssl_zoo.methods.lejepa import LeJEPA
from ssl_zoo.methods.mochi import MoCHi
from ssl_zoo.methods.moco import MoCo
from ssl_zoo.methods.moco_v3 import MoCoV3
from ssl_zoo.methods.multi_view import MVDHEL, MVInfoNCE, ViewAggregate
from ssl_zoo.methods.nnclr import NNCLR
from ssl_zoo.methods.obow import OBoW
from ssl_zoo.methods.pixcontrast import PixContrast
from ssl_zoo.methods.pixpro import PixPro
from ssl_zoo.methods.simclr import SimCLR
from ssl_zoo.methods.simsiam import SimSiam
from ssl_zoo.methods.slotcon import SlotCon
from ssl_zoo.methods.sogclr import SogCLR
from ssl_zoo.methods.swav import SwAV
from ssl_zoo.methods.vicreg import VICReg
from ssl_zoo.methods.visreg import VISReg
from ssl_zoo.methods.wmse import WMSE

__all__ = ["AMCL", "BYOL", "CACR", "DCL", "DCLW", "FT", "MVDHEL", "NNCLR", "WMSE", "AMCLBarlowTwins", "AMCLMoCo",
           "BarlowTwins", "CACRMoCoV3", "DenseCL", "GroCo", "HaLP", "HardContrastive", "HardContrastiveMoCo",
           "ISogCLR", "InterCLR", "LeJEPA", "MVInfoNCE", "MoCHi", "MoCo", "MoCoV3", "OBoW", "PixContrast", "PixPro",
           "SimCLR", "SimSiam", "SlotCon", "SogCLR", "SwAV", "VICReg", "VISReg", "ViewAggregate"]
