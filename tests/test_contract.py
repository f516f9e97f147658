"""What every method promises, whoever wrote it. A method added later is covered by adding its name to CASES.

The checks are the package's own, `ssl_zoo.contract`; test_check.py shows what they refuse. That a loss is its paper's
is asserted in test_methods.py.
"""

from functools import partial
from pathlib import Path

import pytest

from ssl_zoo import contract, methods
from ssl_zoo.contract.runs import IMAGES
from ssl_zoo.methods import (
    AMCL,
    BYOL,
    CACR,
    DCL,
    DCLW,
    FT,
    MVDHEL,
    NNCLR,
    WMSE,
    AMCLBarlowTwins,
    AMCLMoCo,
    BarlowTwins,
    CACRMoCoV3,
    DenseCL,
    GroCo,
    HaLP,
    HardContrastive,
    HardContrastiveMoCo,
    InterCLR,
    ISogCLR,
    LeJEPA,
    MoCHi,
    MoCo,
    MoCoV3,
    MVInfoNCE,
    OBoW,
    PixContrast,
    PixPro,
    SimCLR,
    SimSiam,
    SlotCon,
    SogCLR,
    SwAV,
    VICReg,
    ViewAggregate,
    VISReg,
)
from ssl_zoo.views import ViewSpec
from tests.conftest import MULTI_CROP, TWO_VIEWS, small

WIDTHS = {"projector": (16, 8)}
TEACHER_AND_CROPS = (ViewSpec(16, role="teacher", scale=(1.0, 1.0), ratio=(1.0, 1.0)),
                     ViewSpec(16, scale=(0.08, 0.6), jitter=0.8), ViewSpec(8, 2, scale=(0.05, 0.3)))

JUDGE = str(Path(__file__).parent / "golden" / "encoder.safetensors")     # GenView's, of pairs of views

CASES = {
    "SimCLR": partial(small, SimCLR, **WIDTHS),
    "SimCLR over multi-crop": partial(small, SimCLR, *MULTI_CROP, **WIDTHS),
    "DCL": partial(small, DCL, **WIDTHS),
    "DCL over multi-crop": partial(small, DCL, *MULTI_CROP, **WIDTHS),
    "DCLW": partial(small, DCLW, **WIDTHS),
    "DCLW over multi-crop": partial(small, DCLW, *MULTI_CROP, **WIDTHS),
    "MoCo": partial(small, MoCo, **WIDTHS, queue=20),
    "MoCo, symmetric with splits": partial(small, MoCo, **WIDTHS, queue=20, symmetric=True, splits=2),
    "MoCo, decoupled": partial(small, MoCo, **WIDTHS, queue=20, contrast="decoupled"),
    "MoCo, weighted": partial(small, MoCo, **WIDTHS, queue=20, contrast="weighted_decoupled"),
    "MoCoV3": partial(small, MoCoV3, **WIDTHS, predictor=(16,)),
    "SwAV": partial(small, SwAV, **WIDTHS, prototypes=6, freeze_steps=0),
    "SwAV, multi-crop with queue": partial(small, SwAV, *MULTI_CROP, **WIDTHS, prototypes=6, queue=12, queue_start=0,
                                           freeze_steps=2),
    "BarlowTwins": partial(small, BarlowTwins, **WIDTHS),
    "VICReg": partial(small, VICReg, **WIDTHS),
    "BYOL": partial(small, BYOL, **WIDTHS, predictor=(16,)),
    "SimSiam": partial(small, SimSiam, **WIDTHS, predictor=(4,)),
    "NNCLR": partial(small, NNCLR, **WIDTHS, predictor=(16,), queue=20),
    "DenseCL": partial(small, DenseCL, **WIDTHS, queue=20, splits=2),
    "LeJEPA": partial(small, LeJEPA, **WIDTHS, directions=16),
    "LeJEPA over multi-crop": partial(small, LeJEPA, *MULTI_CROP, **WIDTHS, directions=16),
    "VISReg": partial(small, VISReg, **WIDTHS, directions=16),
    "VISReg over multi-crop": partial(small, VISReg, *MULTI_CROP, **WIDTHS, directions=16),
    "WMSE": partial(small, WMSE, projector=(16, 3), slice_size=4),
    "WMSE over multi-crop": partial(small, WMSE, *MULTI_CROP, projector=(16, 3), slice_size=6, slicings=2),
    "MVInfoNCE": partial(small, MVInfoNCE, **WIDTHS),
    "MVInfoNCE, paper, over multi-crop": partial(small, MVInfoNCE, *MULTI_CROP, **WIDTHS, same_view_negatives=False),
    "MVDHEL": partial(small, MVDHEL, **WIDTHS),
    "MVDHEL over multi-crop": partial(small, MVDHEL, *MULTI_CROP, **WIDTHS),
    "ViewAggregate": partial(small, ViewAggregate, ViewSpec(16, 3), **WIDTHS),
    "ViewAggregate, average": partial(small, ViewAggregate, ViewSpec(16, 3), **WIDTHS, aggregate="average"),
    "ViewAggregate, poly-view": partial(small, ViewAggregate, ViewSpec(16, 3), **WIDTHS, aggregate="poly_view"),
    "SogCLR": partial(small, SogCLR, **WIDTHS, images=IMAGES),
    "ISogCLR": partial(small, ISogCLR, **WIDTHS, images=IMAGES),
    "HardContrastive": partial(small, HardContrastive, **WIDTHS, hardest=0.3),
    "HardContrastive over multi-crop": partial(small, HardContrastive, *MULTI_CROP, **WIDTHS, hardest=0.3),
    "HardContrastiveMoCo": partial(small, HardContrastiveMoCo, **WIDTHS, queue=20, hardest=0.3, splits=2),
    "SlotCon": partial(small, SlotCon, TWO_VIEWS, projector=(16, 16, 8), prototypes=6),
    "SlotCon, views that overlap": partial(small, SlotCon, ViewSpec(16), ViewSpec(16, overlap=0.3),
                                           projector=(16, 8), prototypes=20),
    "InterCLR": partial(small, InterCLR, **WIDTHS, images=IMAGES, queue=20, clusters=3, smallest=2, negatives=6,
                        pool=12, splits=2),
    "InterCLR, clustered at once": partial(small, InterCLR, **WIDTHS, images=IMAGES, queue=20, clusters=3, smallest=2,
                                           negatives=6, pool=12, start=0, every=1, share=0.5),
    "OBoW": partial(small, OBoW, words=20, levels=1),
    "OBoW, teacher and crops": partial(small, OBoW, *TEACHER_AND_CROPS, words=20),
    "CACR": partial(small, CACR, ViewSpec(16, 3), **WIDTHS),
    "CACRMoCoV3": partial(small, CACRMoCoV3, *MULTI_CROP, **WIDTHS, predictor=(16,)),
    "GroCo": partial(small, GroCo, **WIDTHS, negatives=3),
    "GroCo over multi-crop": partial(small, GroCo, *MULTI_CROP, **WIDTHS, negatives=3),
    "FT": partial(small, FT, **WIDTHS, queue=20, splits=2),
    "FT, decoupled": partial(small, FT, **WIDTHS, queue=20, contrast="decoupled"),
    "HaLP": partial(small, HaLP, **WIDTHS, queue=20, prototypes=4, newest=16, positives=5, start=0.2),
    "SimCLR, judged": partial(small, SimCLR, **WIDTHS, judge=JUDGE),
    "MoCo, judged": partial(small, MoCo, **WIDTHS, queue=20, judge=JUDGE),
    "BYOL, judged": partial(small, BYOL, **WIDTHS, predictor=(16,), judge=JUDGE),
    "PixPro": partial(small, PixPro, **WIDTHS),
    "PixPro, instance branch": partial(small, PixPro, **WIDTHS, instance_weight=1.0, transform_layers=0),
    "PixContrast": partial(small, PixContrast, **WIDTHS),
    "MoCHi": partial(small, MoCHi, **WIDTHS, queue=20, hardest=8, pairs=4, with_query=3, start=0),
    "MoCHi, decoupled": partial(small, MoCHi, **WIDTHS, queue=20, hardest=8, pairs=4, with_query=3, start=1,
                                contrast="decoupled"),
    "MoCHi, weighted": partial(small, MoCHi, **WIDTHS, queue=20, hardest=8, pairs=4, with_query=3, start=0,
                               contrast="weighted_decoupled"),
    "AMCL": partial(small, AMCL, heads=2, **WIDTHS),
    "AMCL, paper": partial(small, AMCL, heads=2, **WIDTHS, form="paper", floor=0.05),
    "AMCLMoCo": partial(small, AMCLMoCo, heads=2, **WIDTHS, queue=20),
    "AMCLMoCo, paper": partial(small, AMCLMoCo, heads=2, **WIDTHS, queue=20, form="paper", floor=0.05),
    "AMCLBarlowTwins": partial(small, AMCLBarlowTwins, global_batch=8, heads=2, **WIDTHS),
    "AMCLBarlowTwins, paper": partial(small, AMCLBarlowTwins, global_batch=8, heads=2, **WIDTHS, form="paper"),
}

every_method = pytest.mark.parametrize("name", CASES)
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*", "ignore:the loss of .* sits at")


def test_every_method_is_among_the_cases():
    assert {build.args[0].__name__ for build in CASES.values()} == set(methods.__all__)
    assert set(methods.__all__) <= CASES.keys()


@pytest.fixture(scope="module")
def halves():
    """What two processes found of each method; they are started once for all."""
    return contract.in_two_processes(CASES)


@every_method
def test_loss_gradient_and_state_do_not_depend_on_the_number_of_processes(halves, name):
    contract.processes(CASES[name], halves[name])


@every_method
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name):
    contract.resume(CASES[name])


@every_method
def test_averages_move_with_each_optimiser_step_and_queues_with_each_batch(name):
    contract.accumulation(CASES[name])


@every_method
def test_a_method_trains_close_to_float32_under_bf16(name):
    contract.bfloat16(CASES[name])


@every_method
def test_a_method_comes_back_from_its_checkpoint_and_its_export(name):
    contract.files(CASES[name])


@every_method
def test_every_weight_that_learns_gets_a_gradient(name):
    contract.gradients(CASES[name])


@every_method
def test_a_gpu_mixes_no_devices_and_is_never_waited_for(name):
    contract.gpu(CASES[name])
