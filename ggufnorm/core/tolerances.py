"""How far values may be apart and still count as the same: one place, with its source each.

All are relative L2 distances, ``‖d‖ / ‖reference‖``, unless another measure is named. llama.cpp
states its own tolerances as NMSE, the square of that: ``test-backend-ops`` allows an operation
1e-7 (a relative L2 of 3e-4) and a matrix product 5e-4 (2e-2). What a storage type loses is in
:mod:`ggufnorm.core.rounding`.
"""

from __future__ import annotations

import math

# -- one norm, float32 on both sides -----------------------------------------------------------

HALF_ROUNDING = 5e-4
"""Relative L2 below which two half-precision values cannot be told apart: 2⁻¹¹."""
FLOAT32_ROUNDING = 1e-6
"""Two float32 computations of one formula cannot be told apart below: a few 1e-7 between ggml's
CPU kernels and NumPy (``tests/frameworks/test_norms.py``)."""
SAME_FORMULA = 1e-5
"""A formula, or a pipeline's arithmetic, explains a float32 result up to here: ten times
:data:`FLOAT32_ROUNDING`. Preprocessing leaves 1e-8 to 2e-7 (``tests/frameworks/test_audio.py``)."""
NORM_RESULT = 2 * SAME_FORMULA
"""Most of a norm's own error that two float32 kernels explain, each off by :data:`SAME_FORMULA`."""
MOST_OF_SUMMING = 1e-3
"""Most that a kernel's sums in float32 may cost a norm (:func:`summing`)."""
KERNEL_RESIDUAL = 1e-4
"""llama.cpp's result of a norm against NumPy's: above this it is not the same formula. A third of
what ``test-backend-ops`` allows an operation."""
MODULE_RESIDUAL = 1e-4
"""A module of a checkpoint computes a known norm up to here, as for :data:`KERNEL_RESIDUAL`."""
SAME_EPSILON = 1e-5
"""Two epsilons are one up to this relative difference, rounded to float32 or not."""
EPSILON_OF_VARIANCE = 2.0**-20
"""Share of a variance below which float32 weights do not tell an epsilon: 8 units in the last
place."""
SAME_ELEMENT = 2.0**-22
"""Two float32 results of one sum or product are the same up to this relative distance of each
element: two roundings of the last bit."""


def summing(n: int, mean_over_deviation: float) -> float:
    """Relative L2 that a norm's sums lose, added up one after the other in float32.

    Each of ``n`` additions rounds the sum so far: an error of ``√n · 2⁻²⁴`` of a sum of squares.
    The variance is what is left of it without the mean's square, which is larger by the square of
    mean over deviation where a kernel computes ``E[x²] - E[x]²``, as ONNX Runtime's LayerNorm does
    (``layer_norm_impl.cc``). Groups of 262,144 values were seen to be off by 2.7e-5.

    Args:
        n: values that one mean is taken of.
        mean_over_deviation: of these values.
    """
    lost = math.sqrt(n) * 2.0**-24 * (1 + mean_over_deviation**2)
    return min(MOST_OF_SUMMING, 2 * lost)


# -- from norm to norm and between them --------------------------------------------------------

SAME_DOWNSTREAM = 1e-4
"""Values far downstream are the same: float32 rounding adds up, and what attention and
activations make of it. 5e-6 was seen in nine networks (``tests/frameworks/test_frameworks.py``)."""
STRETCH_OF_MATRICES = 4.0
"""Most of what a stretch of matrices adds, in multiples of one matrix's rounding. Up to twice the
table was measured for one quantized matrix (``tests/frameworks/test_frameworks.py``)."""
PRODUCT_ON_DEVICE = 5e-4**0.5
"""What a matrix product may be off by on a GPU, which may multiply and add in half precision: the
root of the NMSE that llama.cpp's ``test-backend-ops`` allows (``max_nmse_err`` of test_mul_mat)."""
OPERATION_OF_TYPE = 1.5
"""As :data:`STRETCH_OF_MATRICES` for one operation with quantized matrices, given the source's
values: half the table to its whole was measured for one matrix."""
STRETCH_OF_COST = 2.0
"""As :data:`STRETCH_OF_MATRICES`, in multiples of what the types of all matrices before do to the
source itself: measured, not estimated. An engine rounds what it multiplies them with besides."""
COST_OF_ACTIVATIONS = 0.02
"""What llama.cpp's rounding of activations to 8 bits adds before quantized matrices at most."""
JUMP = 8.0
"""How many times as large a difference must be as all before it to have an origin of its own."""
SAME_OPERATION = 0.03
"""A result can be found among others up to here: wide rows of unrelated values differ by no more,
put in ascending order (``tests/frameworks/test_operations.py``)."""
SAME_PRODUCT = 0.2
"""As :data:`SAME_OPERATION`, each token's values in one order: unrelated ones are 1.4 apart."""
SAME_GATHERED = 2e-3
"""As :data:`SAME_OPERATION` for values whose tokens stand in another order: unrelated ones come
nearer, all of them in ascending order, than those of each token."""
SAME_FUNCTION = 1e-2
"""A function made a result up to here: others are far (``tests/frameworks/test_operations.py``)."""
SAME_FACTOR = 1e-3
"""Relative difference up to which a measured factor is a known one."""
NEARER_ORDER = 0.5
"""Part of the distance that must remain at most for another order of rows to be the right one."""
NEAR_SCALE = 0.1
"""Two batch norms' scales that are further apart are worth no closer look."""

# -- quantized and damaged tensors -------------------------------------------------------------

NORM_SHARE = 0.1
"""A norm is at fault above this share of the typical local error of a matrix product."""
PEER_RATIO = 1.2
"""An operation is suspected at this multiple of its peers' median local error."""
WEIGHT_RATIO = math.sqrt(2.0)
"""A tensor is damaged at this multiple of a fresh quantization's error: the damage then adds as
much as quantization does. Importance matrices bring it to 1.2 at most."""
BLOCK_RATIO = 3.0
"""A block of a tensor is damaged at this multiple. Importance matrices bring it to 1.7."""
OPERATION_PEER_RATIO = 3.0
"""An operation that reads no weight is out of line at this multiple of its peers' median error."""
OPERATION_ERROR = 0.1
"""Below this own error an operation that reads no weight is not at fault: a cache in Q4_0 costs an
attention 0.03 to 0.18 in sound layers."""
OPERATION_RUINED = 0.35
"""Above this own error it is at fault whatever its peers show: twice what Q4_0 costs one."""
NOT_QUANTIZATION = 0.5
"""Above this no common quantization accounts for a tensor's difference (Q2_K: 0.3)."""
TENSOR_PEER_RATIO = 3.0
"""A tensor is out of line at this multiple of the median error of tensors of the same types."""
QUANTIZED_EMBEDDINGS = 0.35
"""Embeddings may be one and the same up to here, quantized (Q2_K: 0.3)."""
TRAINED_FURTHER = 0.1
"""Unexplained norms that are nearer look trained a little further, not broken."""

# -- preprocessing -----------------------------------------------------------------------------

AMBIGUOUS = 1.1
"""Residuals within this factor of the best do not tell two formulae apart."""
PIXEL_FORMULA = 5e-4
"""A normalization of pixels explains all up to this residual: constants are often rounded to four
digits."""
PIXEL_CONSTANT = 1e-4
"""Constants of pixels are the same up to this difference: some configurations round to four
digits."""
ONE_LEVEL = 1.0
"""Levels of 255 by which what constants make may differ, and they are the same: resizes that round
or cut shift by as much."""
SAME_PICTURE = 0.35
"""Free fit's residual above which the two are not one picture, and tell nothing."""
PICTURE_FOUND = 1e-3
"""Residual of a resized picture below which no other way to resize is tried."""
ROUNDED_PICTURE = 0.01
"""Residual that rounding a resized picture to whole levels leaves at most: above it the resize is
another one."""
UNRECOGNIZED_PICTURE = 0.05
"""Residual above which the picture may be another one than the original, resized in any way."""
MUCH_NEARER = 0.6
"""Share of that residual that another picture, mirrored or without colours, must not exceed."""
SAME_LEVELS = 2.5
"""Levels of 255 by which two resizes of one make differ: Pillow and llama.cpp round after each of
two passes, and Pillow goes down the columns of tall pictures first (1 level was seen)."""
WAVE_FORMULA = 1e-5
"""One multiple of a sample and one number explain a waveform up to this residual; float32 leaves
1e-7."""
WAVE_CONSTANT = 0.005
"""Relative difference up to which two gains of a waveform are one, and offsets in deviations:
0.04 dB. Resamplers and rounding shift less."""
MEL_FORMULA = 1e-4
"""A log-mel computation explains all up to this residual; float32 leaves 1e-7 to 1e-5."""
SAME_SOUND = 0.1
"""The best residual above which the values are not of this sound, and tell nothing: other
resamplers and rounding to 8 bits leave up to 0.08, hiss 40 dB below the sound 0.2."""
MEL_FIT = 0.02
"""Residual up to which a free fit's figures are worth saying."""
