"""Steps: what they compute, the shape they declare, and what they say about a text that is no step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import InputError
from edge_runtime.pipeline.preprocess import Chain, is_finite, known_steps, output_shape, parse_steps
from edge_runtime.types import Array, FloatArray

ALL = [
    "standardize", "demean", "detrend", "minmax", "scale(0.5)", "offset(-2)", "clip(-1, 1)", "hann", "rfft_magnitude",
    "rfft_magnitude(log)", "abs", "rms", "log1p", "diff", "flatten", "transpose", "float32",
    "log_mel(16, 4, 2, 2, 0, 8)", "dct(2)",
]  # fmt: skip


def run(names: list[str], data: FloatArray, dtype: str = "float32") -> Array:
    steps = parse_steps(names)
    target = np.full(output_shape(steps, data.shape), np.nan, dtype)
    Chain(steps, data.shape, target)(data)
    return target


def signal(channels: int = 2, samples: int = 64) -> FloatArray:
    return (np.random.default_rng(3).standard_normal((channels, samples)) * 5 + 2).astype(np.float32)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["standardize"], lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)),
        (["demean"], lambda x: x - x.mean(-1, keepdims=True)),
        (["minmax"], lambda x: (x - x.min(-1, keepdims=True)) / np.ptp(x, axis=-1, keepdims=True)),
        (["scale(0.5)", "offset(-2)"], lambda x: x * 0.5 - 2),
        (["clip(-1, 1)"], lambda x: np.clip(x, -1, 1)),
        (["hann"], lambda x: x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64))),
        (["rfft_magnitude"], lambda x: np.abs(np.fft.rfft(x))),
        (["rfft_magnitude(log)"], lambda x: np.log1p(np.abs(np.fft.rfft(x)))),
        (["abs", "log1p"], lambda x: np.log1p(np.abs(x))),
        (["rms"], lambda x: np.sqrt((x * x).mean(-1))),
        (["diff"], lambda x: np.diff(x)),
        (["flatten"], lambda x: x.reshape(-1)),
        (["transpose"], lambda x: x.T),
        (["transpose", "transpose"], lambda x: x),
        (["float32"], lambda x: x),
        ([], lambda x: x),
    ],
)
def test_a_step_computes_what_its_name_says(names: list[str], expected: object) -> None:
    data = signal()
    before = data.copy()
    np.testing.assert_allclose(run(names, data), expected(data.astype(np.float64)), rtol=2e-5, atol=2e-5)  # type: ignore[operator]
    np.testing.assert_array_equal(data, before)


def log_mel(x: Array, rate: float, size: int, hop: int, bands: int, low: float, high: float) -> Array:
    """Frame by frame and band by band, as the definition says it."""
    points = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(*(2595 * np.log10(1 + np.array([low, high]) / 700)), bands + 2)]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    rows = []
    for start in range(0, len(x) - size + 1, hop):
        power = np.abs(np.fft.rfft(x[start : start + size] * hann)) ** 2
        row = []
        for left, middle, right in zip(points, points[1:], points[2:], strict=False):
            weights = [np.interp(k * rate / size, [left, middle, right], [0, 1, 0], 0, 0) for k in range(size // 2 + 1)]
            row.append(np.log(1e-6 + float(np.dot(weights, power))))
        rows.append(row)
    return np.array(rows)


def test_log_mel_frames_follow_their_definition() -> None:
    data = signal(2, 400)
    got = run(["log_mel(1600, 64, 40, 8, 20, 700)"], data)
    expected = np.stack([log_mel(row.astype(np.float64), 1600, 64, 40, 8, 20, 700) for row in data])
    assert got.shape == (2, 9, 8)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_array_equal(run(["log_mel(1600, 64, 40, 8)"], data), run(["log_mel(1600, 64, 40, 8, 20, 800)"], data))


def test_the_cosine_transform_keeps_the_energy() -> None:
    data = signal(1, 16)
    whole = run(["dct(16)"], data)
    assert float((whole**2).sum()) == pytest.approx(float((data**2).sum()), rel=1e-5)
    np.testing.assert_allclose(run(["dct(3)"], data), whole[:, :3], rtol=1e-5, atol=1e-5)


def test_detrend_takes_a_straight_line_off() -> None:
    line = np.stack([np.linspace(-3, 9, 50), np.full(50, 7.0)]).astype(np.float32)
    np.testing.assert_allclose(run(["detrend"], line), np.zeros((2, 50)), atol=1e-5)


def test_a_square_window_is_transposed_whole() -> None:
    data = signal(8, 8)
    np.testing.assert_array_equal(run(["abs", "transpose", "abs"], data), np.abs(data).T)


@pytest.mark.parametrize("level", [0.0, 1.1, 1e6, -3e30])
def test_silence_stays_silence(level: float) -> None:
    assert not run(["standardize"], np.full((2, 777), level, np.float32)).any()


@given(names=st.lists(st.sampled_from(ALL), max_size=6), channels=st.integers(1, 3), samples=st.sampled_from([1, 2, 5, 16]))
def test_the_declared_shape_is_the_real_one(names: list[str], channels: int, samples: int) -> None:
    data = signal(channels, samples)
    try:
        shape = output_shape(parse_steps(names), data.shape)
    except InputError:
        assert {"diff", "dct(2)", "log_mel(16, 4, 2, 2, 0, 8)"} & set(names)
        return
    result = run(names, data)
    assert result.shape == shape
    np.testing.assert_array_equal(result, run(names, data))


@given(names=st.lists(st.sampled_from(ALL), min_size=1, max_size=5))
def test_a_chain_gives_the_same_as_its_steps_one_by_one(names: list[str]) -> None:
    data = signal(3, 9)
    step_by_step: Array = data
    try:
        for name in names:
            step_by_step = run([name], step_by_step)
    except InputError:
        return
    np.testing.assert_array_equal(run(names, data), step_by_step)


def test_the_target_may_be_transposed_and_of_another_float_type() -> None:
    data = signal()
    target = np.zeros((64, 2), np.float64)
    Chain(parse_steps(["standardize", "scale(2)"]), data.shape, target.T)(data)
    np.testing.assert_allclose(target.T, run(["standardize", "scale(2)"], data), rtol=1e-5, atol=1e-6)


def test_overflow_gives_infinity_that_the_guard_sees() -> None:
    with np.errstate(all="raise"):
        result = run(["scale(1e38)", "log1p"], signal())
    assert not is_finite(result.reshape(-1))


@pytest.mark.parametrize(
    ("values", "finite"),
    [([1.0, 2.0], True), ([3e38, -3e38], True), ([np.nan, 0], False), ([np.inf, 0], False), ([np.inf, -np.inf], False), ([], True)],
)
def test_the_guard_tells_large_from_infinite(values: list[float], finite: bool) -> None:
    assert is_finite(np.array(values, np.float32)) is finite
    assert is_finite(np.array(values * 10_000, np.float32)) is finite


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("standardise", "did you mean `standardize`"),
        ("Standardize", "did you mean `standardize`"),
        ("fft", "Known: standardize"),
        ("", "unknown preprocessing step"),
        ("scale", "expected `scale(x)`, got 0"),
        ("scale(a)", "expected numbers"),
        ("scale(nan)", "expected finite"),
        ("scale(1, 2)", "got 2"),
        ("clip(1)", "got 1"),
        ("clip(1, -1)", "lower bound first"),
        ("rfft_magnitude(db)", "one of: log"),
        ("standardize(2)", "got 1"),
        ("scale(0.5", "unknown"),
        ("log_mel(16000, 480, 320)", "expected `log_mel(rate_hz, frame, hop, bands[, low_hz, high_hz])`, got 3"),
        ("log_mel(16000, 480, 320, 40, 20, 9000)", "high <= rate / 2 = 8000 Hz"),
        ("log_mel(16000, 64, 32, 200)", "bands hold no frequency"),
        ("log_mel(16000, 1e6, 1, 2)", "from 1 to 8192 as `frame`"),
        ("log_mel(16000, 400.5, 1, 2)", "whole number"),
        ("dct(0)", "from 1 to 256"),
    ],
)
def test_a_wrong_step_is_named_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_steps(["demean", text])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_step_is_listed() -> None:
    assert {usage.split("(")[0] for usage in known_steps()} == {name.split("(")[0] for name in ALL}


def test_a_step_that_cannot_take_its_input_says_so() -> None:
    with pytest.raises(InputError, match=r"`diff` needs at least 2 samples, the input has shape \(2, 1\)"):
        output_shape(parse_steps(["diff"]), (2, 1))


@pytest.mark.parametrize(
    ("text", "samples", "message"),
    [
        ("log_mel(16000, 480, 320, 40)", 479, "at least one frame of 480 samples"),
        ("log_mel(16000, 480, 1, 40)", 1_000_000, "more than 16777216 in all; use a longer hop"),
        ("dct(8)", 7, "keeps 8 coefficients"),
        ("dct(8)", 9000, "at most 8192 values"),
    ],
)
def test_frames_that_do_not_fit_or_take_too_much_are_refused(text: str, samples: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        output_shape(parse_steps([text]), (1, samples))
