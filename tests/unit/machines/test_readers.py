"""Op tables of two profilers: rows written by hand, and the steps put together from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from calibrate.machines import aiconfigurator, llmservingsim, shapes
from calibrate.machines.llmservingsim import _SKEW
from calibrate.machines.shapes import Shape
from calibrate.machines.steps import Step, even
from policy.errors import ConfigError, InputError

TINY = Shape("tiny", 2, 64, 128, 4, 2, 16, 1000, 4096)


def llmservingsim_folder(path: Path) -> Path:
    dense = [
        (layer, tokens, us * tokens)
        for layer, us in (
            ("qkv_proj", 1),
            ("o_proj", 2),
            ("gate_up_proj", 3),
            ("down_proj", 4),
            ("layernorm", 5),
            ("embedding", 7),
        )
        for tokens in (1, 16, 512)
    ]
    pd.DataFrame(dense, columns=["layer", "tokens", "time_us"]).to_csv(path / "dense.csv")
    heads = [("lm_head", 1, 10), ("sampler", 1, 1), ("lm_head", 4, 16), ("sampler", 4, 4)]
    pd.DataFrame(heads, columns=["layer", "sequences", "time_us"]).to_csv(path / "per_sequence.csv")
    rows = [(0, 0, n, kv, n * kv) for n in (1, 2) for kv in (16, 32)]
    rows += [(chunk, past, 0, 0, chunk + past) for chunk in (16, 32) for past in (0, 16)]
    rows += [
        (chunk, past, n, kv, chunk + past + 2 * n * kv)
        for chunk in (16, 32)
        for past in (0, 16)
        for n in (1, 2)
        for kv in (16, 32)
    ]
    rows.append((24, 0, 1, 20, 99))  # off the grid: a point, but nothing is interpolated from it
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    pd.DataFrame(rows, columns=names).to_csv(path / "attention.csv")
    return path


def test_a_step_is_every_layer_the_head_and_attention(tmp_path: Path) -> None:
    tables = llmservingsim.read(llmservingsim_folder(tmp_path), TINY, "card")
    # two layers of (1 + 2 + 3 + 4 + twice 5) us a token, the embedding once
    assert tables.tokens(8) == 8 * (2 * 20 + 7) * 1000
    assert tables.head(2) == (10 + 2 + 1 + 1) * 1000
    step = even(2, 24)
    assert tables.step_ns(step) == tables.linear_ns(step) + 2 * 48 * 1000
    assert tables.attention(even(1, 20, ((24, 8),))) == (24 + 8 + 2 * 20) * 1000
    assert len(tables.points()) == 4 + 4 + 16 + 1
    assert "no all-reduce was measured" not in tables.assumed


def test_a_further_chunk_adds_what_it_takes_alone_beyond_the_smallest(tmp_path: Path) -> None:
    tables = llmservingsim.read(llmservingsim_folder(tmp_path), TINY, "card")
    one = tables.attention(Step(chunks=((32, 16),)))
    assert tables.attention(Step(chunks=((32, 0), (32, 16)))) == one + (32 - 16) * 1000


def test_uneven_contexts_cost_a_share_of_what_the_longest_for_all_would(tmp_path: Path) -> None:
    folder = llmservingsim_folder(tmp_path)
    names = ["regime", "n", "nb", "pc", "kp", "kvs", "kv_big", "t_mean_us", "t_max_us", "t_skew_us"]
    # n * kv us at the mean of 24, three times over as the profiler has it, a quarter of the gap
    rows = [("pure", 2, 1, 0, 0, 16, 32, 3 * 48, 3 * 64, 3 * 52)]
    pd.DataFrame(rows, columns=names).to_csv(folder / "skew.csv")
    tables = llmservingsim.read(folder, TINY, "card")
    skewed = [point for point in tables.points() if point.skewed]
    assert [point.step for point in skewed] == [Step(2, 48, 32)]
    assert skewed[0].ns - tables.linear_ns(skewed[0].step) == pytest.approx(2 * 52 * 1000)
    assert tables.attention(Step(2, 48, 32)) == pytest.approx(52 * 1000)
    # of steps with prompts the table says nothing: they cost what even ones do
    beside = Step(2, 48, 32, ((32, 0),))
    assert tables.attention(beside) == tables.attention(even(2, 24, ((32, 0),)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dense.csv").unlink(), "has no dense.csv"),
        (
            lambda f: (f / "per_sequence.csv").write_text(
                "layer,sequences,time_us\nlm_head,1,-5\n"
            ),
            "per_sequence.csv:2: time_us: '-5' is no number >= 0",
        ),
        (
            lambda f: (f / "attention.csv").write_text("prefill_chunk,time_us\n1,2\n"),
            "no column kv_prefill, n_decode, kv_decode",
        ),
        (
            lambda f: (f / "dense.csv").write_text("layer,tokens,time_us\nmoe,1,5\n"),
            "lacks matrix products",
        ),
        (
            lambda f: (f / "per_sequence.csv").write_text(
                "layer,sequences,time_us\nlm_head,1,5\nsampler,2,5\n"
            ),
            "per_sequence.csv: no sequences at which every layer was measured",
        ),
        (lambda f: (f / "skew.csv").write_text("regime,n\npure,2\n"), "skew.csv: no column nb"),
        (
            lambda f: (f / "skew.csv").write_text(f"regime,{','.join(_SKEW)}\n"),
            "skew.csv has no rows of regime pure",
        ),
    ],
)
def test_a_folder_that_is_none_is_refused_by_file_and_field(
    tmp_path: Path, spoil: object, message: str
) -> None:
    folder = llmservingsim_folder(tmp_path)
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        llmservingsim.read(folder, TINY, "card")


def aiconfigurator_folder(path: Path) -> Path:
    products = [
        ("bfloat16", m, n, k, m * n * k / 1e9)
        for m in (1, 64, 256)
        for n in (64, 128, 256, 512)
        for k in (64, 128)
    ]
    products += [("fp8", 1, 64, 64, 99.0)]
    names = ["gemm_dtype", "m", "n", "k", "latency"]
    pd.DataFrame(products, columns=names).to_parquet(path / "gemm_perf.parquet")
    names = ["batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim"]
    names += ["kv_cache_dtype", "window_size", "latency"]
    prompts = [
        (b, isl, heads, 2, 16, "bfloat16", 0, b * isl * isl * heads / 1e6)
        for b in (1, 2)
        for isl in (1, 16, 32)
        for heads in (4, 8)
    ]
    prompts += [(1, 1, 4, 2, 16, "fp8", 0, 77.0), (1, 1, 4, 2, 16, "bfloat16", 128, 77.0)]
    pd.DataFrame(prompts, columns=names).to_parquet(path / "context_attention_perf.parquet")
    decode = [
        (b, 1, 4, 2, 16, "bfloat16", 0, b * (step + 1) / 1e6, step)
        for b in (1, 2)
        for step in (15, 31)
    ]
    pd.DataFrame(decode, columns=[*names, "step"]).to_parquet(
        path / "generation_attention_perf.parquet"
    )
    reduces = [(2, "vllm_graph", size, size / 1e6) for size in (64, 128, 6400)]
    pd.DataFrame(reduces, columns=["num_gpus", "backend", "message_size", "latency"]).to_parquet(
        path / "custom_allreduce_perf.parquet"
    )
    return path


def without(name: str, **kept: object) -> Callable[[Path], None]:
    """Leave only rows of these values in a table."""

    def spoil(folder: Path) -> None:
        frame = pd.read_parquet(folder / name)
        for column, value in kept.items():
            frame = frame[frame[column] == value]
        frame.to_parquet(folder / name)

    return spoil


def apart(folder: Path) -> None:
    """Leave one width with other numbers of rows than the others."""
    frame = pd.read_parquet(folder / "gemm_perf.parquet")
    frame[(frame["n"] == 64) == (frame["m"] == 1)].to_parquet(folder / "gemm_perf.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("gemm_perf.parquet", gemm_dtype="fp8"), "no rows of bfloat16"),
        (apart, "no m at which all of qkv, o, gate_up, down were measured"),
        (without("context_attention_perf.parquet", batch_size=1), "of one batch_size alone"),
        (without("generation_attention_perf.parquet", batch_size=2), "of one batch_size alone"),
        (without("context_attention_perf.parquet", isl=16), "fewer than two prompts"),
        (without("context_attention_perf.parquet", head_dim=8), "no attention of 2 KV heads of 16"),
    ],
)
def test_tables_too_bare_for_a_line_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = aiconfigurator_folder(tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        aiconfigurator.read(folder, TINY, "card")


def test_matrix_products_are_straight_between_widths_and_in_proportion_beyond(
    tmp_path: Path,
) -> None:
    tables = aiconfigurator.read(aiconfigurator_folder(tmp_path), TINY, "card")
    # qkv 128 x 64, o 64 x 64, gate_up 256 x 64, down 64 x 128, of two layers; m * n * k picoseconds
    assert tables.tokens(8) == pytest.approx(
        2 * 8 * (128 * 64 + 64 * 64 + 256 * 64 + 64 * 128) / 1e9 * 1e6
    )
    assert tables.head(8) == pytest.approx(8 * 1000 * 64 / 1e9 * 1e6)  # 1,000 is wider than 512
    between = TINY._replace(inner=96)  # gate_up of 192 lies half-way from 128 to 256
    wider = aiconfigurator.read(tmp_path, between, "card").tokens(8)
    assert wider == pytest.approx(2 * 8 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96) / 1e9 * 1e6)


def test_decode_and_prompts_add_up_and_a_past_costs_its_pairs(tmp_path: Path) -> None:
    tables = aiconfigurator.read(aiconfigurator_folder(tmp_path), TINY, "card")
    assert tables.attention(even(2, 24)) == pytest.approx(2 * 24)
    alone = tables.attention(Step(chunks=((32, 0),)))
    assert alone == pytest.approx(32 * 32 * 4)
    # half of it is a pair's rate: 32 * 32 / 2 pairs cost 4,096 ns
    behind = tables.attention(Step(chunks=((32, 10),)))
    assert behind - alone == pytest.approx(8 * 32 * 10)
    assert tables.attention(even(2, 24, ((32, 0),))) == pytest.approx(48 + alone)


def test_shares_pay_two_all_reduces_a_layer_of_elements(tmp_path: Path) -> None:
    share = TINY._replace(heads=8, kv_heads=4, inner=256).split(2)
    tables = aiconfigurator.read(aiconfigurator_folder(tmp_path), share, "card")
    assert tables.reduce(2) == pytest.approx(2 * 2 * 2 * 64)
    with pytest.raises(InputError, match="no rows of 4 GPUs"):
        aiconfigurator.read(
            tmp_path, TINY._replace(heads=16, kv_heads=8, inner=512).split(4), "card"
        )


def test_heads_that_were_not_measured_take_the_nearest_and_say_so(tmp_path: Path) -> None:
    folder = aiconfigurator_folder(tmp_path)
    tables = aiconfigurator.read(folder, TINY._replace(heads=5), "card")
    assert tables.attention(even(1, 16)) == pytest.approx(16)  # KV is what decoding waits for
    assert tables.attention(Step(chunks=((32, 0),))) == pytest.approx(32 * 32 * 4 * 5 / 4)
    assert "attention of 5 heads from rows of 4" in tables.assumed


def test_a_config_gives_the_shape_and_what_is_not_dense_is_refused(tmp_path: Path) -> None:
    llama = shapes.find("llama-3.1-8b")
    assert (llama.weight_bytes, llama.token_bytes) == (16_060_522_496, 131_072)
    with pytest.raises(InputError, match="model_type 'deepseek_v3' is not one of"):
        shapes.shape_of({"model_type": "deepseek_v3"}, "config.json")
    with pytest.raises(InputError, match="num_hidden_layers: 'None' is not a whole number"):
        shapes.shape_of(
            {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 64}, "config.json"
        )
    with pytest.raises(ConfigError, match=r"neither a config\.json nor one of"):
        shapes.find(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="tensor parallel 16"):
        llama.split(16)
