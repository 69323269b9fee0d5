"""Precision: what is chosen and why, the flag put back, and a loss curve in fewer bits close to that in fp32."""

import math

import numpy as np
import pytest
import torch

from tessera.data.batches import RandomWindows
from tessera.data.shards import Shard
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.ops.int8 import is_exact
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train import precision as module
from tessera.train.precision import FP32, Precision, Shape, choose, fp32_through_onednn, go_on
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

CPU = torch.device("cpu")
SHAPE = Shape(d_model=256, n_heads=4, context=64, batch_size=4)
TEXT = np.frombuffer(b"the cat sat on the mat and the dog sat on the log. " * 40, dtype=np.uint8).astype(np.uint16)


def trained(precision: Precision, steps: int, *, pieces: dict | None = None, **parts: object) -> list[Progress]:
    torch.manual_seed(0)
    shape = {"n_vocab": 128, "context": 16, "d_model": 32, "n_layers": 2, "n_heads": 4} | (pieces or {})
    model = Decoder(**shape)
    precision.prepare(model)
    data = RandomWindows(shard=Shard(TEXT), context=16, batch_size=8, seed=0)
    objective = NextToken(model=model, data=data)
    seen: list[Progress] = []
    trainer = Trainer(
        objective=objective,
        optimizer=OPTIMIZERS["adamw"](groups(objective, 0.0), lr=3e-3),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(steps=steps, accumulate=2),
        watch=seen.append,
        precision=precision,
        **parts,
    )
    trainer.run()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return seen


PIECES = {
    "llama": {},
    "gpt2": {"position": "learned", "norm": "layer", "feed_forward": "gelu", "tied": True, "bias": True},
    "gemma": {
        "feed_forward": "geglu",
        "placement": "sandwich",
        "attention": {"name": "gqa", "n_kv_heads": 2, "qk_norm": True, "score_cap": 20.0, "sinks": True},
        "logit_cap": 30.0,
    },
    "experts": {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 2}, "attention": "mla", "dropout": 0.05},
    "t5": {"position": "t5", "feed_forward": "relu2", "n_future": 1},
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_the_loss_curve_is_close_to_that_in_fp32(name: str, pieces: dict) -> None:
    exact = [progress.loss for progress in trained(FP32, 30, pieces=pieces)]
    close = [progress.loss for progress in trained(Precision(name), 30, pieces=pieces)]
    assert exact[-1] < 0.75 * exact[0]  # it learns
    assert close != exact
    assert close == pytest.approx(exact, rel=0.04)


def test_half_the_bits_are_what_the_products_are_computed_in() -> None:
    kinds = set()

    class Spied(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
                kinds.add(args[-1].dtype)
            return func(*args, **(kwargs or {}))

    with Spied():
        trained(Precision("bf16"), 1)
    assert kinds == {torch.bfloat16}


def test_fp16_survives_a_scale_that_is_too_large_and_keeps_it_in_the_checkpoint(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = Run.create(tmp_path / "run", recipe={}, tokenizer_json="{}", vocabulary=[])
    torch.manual_seed(0)
    model = Decoder(n_vocab=128, context=16, d_model=32, n_layers=2, n_heads=4)

    def trainer() -> Trainer:
        data = RandomWindows(shard=Shard(TEXT), context=16, batch_size=8, seed=0)
        objective = NextToken(model=model, data=data)
        return Trainer(
            objective=objective,
            optimizer=OPTIMIZERS["adamw"](groups(objective, 0.0), lr=3e-3),
            schedule=lambda step, steps: 1.0,
            settings=TrainSettings(steps=3),
            checkpoints=run.checkpoints,
            precision=Precision("fp16"),
        )

    first = trainer()
    first._step.scaler.scale = 2.0**40
    first.run()
    scale = first._step.scaler.scale
    assert 1.0 < scale < 2.0**40
    second = trainer()
    assert second._step.scaler.scale != scale
    second.resume()
    assert (second._step.scaler.scale, second._step.scaler.streak) == (scale, first._step.scaler.streak)
    run.close()


def test_auto_measures_once_says_why_and_leaves_the_generators_alone() -> None:
    module._measured.cache_clear()
    before = torch.get_rng_state()
    chosen = choose("auto", CPU, SHAPE)
    assert torch.equal(before, torch.get_rng_state())
    assert choose("auto", CPU, SHAPE) is chosen
    assert " ms" in chosen.reason
    assert Precision(**chosen.written()) == chosen
    assert chosen.describe().startswith(f"precision {chosen.name}")


@pytest.mark.parametrize(
    ("seconds", "exact", "expected"),
    [
        ({"fp32": 10, "onednn": 9, "bf16": 9.5}, True, FP32),
        ({"fp32": 10, "onednn": 9, "bf16": 9.5, "int8": 8}, True, Precision("int8")),
        ({"fp32": 10, "onednn": 9, "bf16": 4, "int8": 3.5}, True, Precision("bf16")),
        ({"fp32": 10, "onednn": 5, "bf16": 9.5}, True, Precision("fp32", onednn=True)),
        ({"fp32": 10, "onednn": 5, "bf16": 9.5}, False, FP32),
        ({"fp32": 10, "onednn": 5, "bf16": 4.5}, True, Precision("fp32", onednn=True)),
        ({"fp32": 10, "onednn": 5, "bf16": 4}, True, Precision("bf16")),
        ({"fp32": 1e-4, "onednn": 1e-5, "bf16": 1e-5}, True, FP32),
    ],
)
def test_the_choice_follows_the_figures(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], exact: bool, expected: Precision
) -> None:
    def measured(device: torch.device, shape: Shape, one: Precision, *, limit: float = math.inf) -> float:
        return seconds.get("onednn" if one.onednn else one.name, 100)

    monkeypatch.setattr(module, "_layer_seconds", measured)
    monkeypatch.setattr(module, "_onednn_is_exact", lambda shape: exact)
    monkeypatch.setattr(module, "is_exact", lambda: True)
    module._measured.cache_clear()
    chosen = choose("auto", CPU, SHAPE)
    module._measured.cache_clear()
    assert (chosen.name, chosen.onednn) == (expected.name, expected.onednn)


def test_the_flag_is_put_back_also_after_an_error() -> None:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), Precision("fp32", onednn=True).step():
        assert matmul.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert matmul.fp32_precision == before
    with FP32.step():
        assert matmul.fp32_precision == before


def test_the_numeric_check_tells_bf16_arithmetic_from_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    exact = a.double() @ b.double()
    rounded = (a.bfloat16() @ b.bfloat16()).float()
    assert module._error(rounded, exact) > 10 * module.EXACT * module._error(a @ b, exact)
    with fp32_through_onednn():
        through = module._error(a @ b, exact)
    assert module._onednn_is_exact(SHAPE) == (through <= module.EXACT * module._error(a @ b, exact))


def test_what_a_device_cannot_compute_is_refused() -> None:
    with pytest.raises(SettingError, match=r"train\.precision = 'fp16'"):
        choose("fp16", torch.device("meta"), SHAPE)
    assert choose("bf16", CPU, SHAPE) == Precision("bf16", reason="asked for")


@pytest.mark.parametrize("name", ["tf32", "fp8"])
def test_what_needs_a_gpu_says_so(name: str) -> None:
    with pytest.raises(SettingError, match=rf"train\.precision = '{name}'.*compute capability 8\.\d or later, not cpu"):
        choose(name, CPU, SHAPE)


def test_the_flag_of_tf32_is_put_back_also_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), Precision("tf32").step():
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before == "highest"
    assert Precision("tf32").dtype == torch.float32


def test_a_run_goes_on_in_the_precision_that_it_began_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept in (FP32, Precision("bf16", reason="measured elsewhere")):
        assert go_on(kept, CPU, SHAPE) == kept
    with pytest.raises(SettingError, match=r"train\.precision = 'fp16'"):
        go_on(Precision("fp16"), torch.device("meta"), SHAPE)
    through = Precision("fp32", onednn=True, reason="measured elsewhere")
    for exact, onednn in ((True, True), (False, False)):
        monkeypatch.setattr(module, "_onednn_is_exact", lambda shape, exact=exact: exact)
        here = go_on(through, CPU, SHAPE)
        assert (here.name, here.onednn) == ("fp32", onednn)
        assert onednn or "rounds to bf16 on this machine" in here.describe()


def test_8_bits_learn_about_the_same() -> None:
    precision = Precision("fp8")
    exact = [progress.loss for progress in trained(FP32, 30)]
    close = [progress.loss for progress in trained(precision, 30)]
    bf16 = [progress.loss for progress in trained(Precision("bf16"), 30)]
    assert close != bf16  # it is in 8 bits
    assert close == pytest.approx(exact, rel=0.06)


in_integers = pytest.mark.skipif(not is_exact(), reason="this processor's products of 8 bits are not exact")


@in_integers
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
def test_integers_of_8_bits_learn_the_same(pieces: dict) -> None:
    exact = [progress.loss for progress in trained(FP32, 30, pieces=pieces)]
    close = [progress.loss for progress in trained(Precision("int8"), 30, pieces=pieces)]
    assert close != exact
    assert close == pytest.approx(exact, rel=0.04)


@in_integers
def test_a_run_in_integers_goes_on_bit_for_bit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def run(folder: str, stops: tuple[int, ...]) -> list[torch.Tensor]:
        kept = Run.create(tmp_path / folder, recipe={}, tokenizer_json="{}", vocabulary=[])
        for number, steps in enumerate(stops):
            torch.manual_seed(0)
            model = Decoder(n_vocab=128, context=16, d_model=32, n_layers=2, n_heads=4)
            Precision("int8").prepare(model)
            data = RandomWindows(shard=Shard(TEXT), context=16, batch_size=8, seed=0)
            objective = NextToken(model=model, data=data)
            trainer = Trainer(
                objective=objective,
                optimizer=OPTIMIZERS["adamw"](groups(objective, 0.0), lr=3e-3),
                schedule=lambda step, steps: 1.0,
                settings=TrainSettings(steps=steps),
                checkpoints=kept.checkpoints,
                precision=Precision("int8"),
            )
            if number:
                trainer.resume()
            trainer.run()
        kept.close()
        return [parameter.detach() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run("whole", (6,)), run("parts", (3, 6)), strict=True))


def test_integers_are_for_a_cpu_that_multiplies_them_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_exact", lambda: True)
    assert choose("int8", CPU, SHAPE) == Precision("int8", reason="asked for")
    with pytest.raises(SettingError, match=r"train\.compile=false"):
        choose("int8", CPU, Shape(256, 4, 64, 4, compiled=True))
    with pytest.raises(SettingError, match="for a CPU, not meta"):
        choose("int8", torch.device("meta"), SHAPE)
    monkeypatch.setattr(module, "is_exact", lambda: False)
    for ask in (lambda: choose("int8", CPU, SHAPE), lambda: go_on(Precision("int8"), CPU, SHAPE)):
        with pytest.raises(SettingError, match=r"train\.precision = 'int8'.*exactly"):
            ask()
    assert "int8" not in [one.name for one in module._candidates(CPU, SHAPE)]


def test_integers_are_not_tried_where_they_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_exact", lambda: True)
    assert "int8" in [one.name for one in module._candidates(CPU, SHAPE)]
    for shape in (Shape(192, 4, 64, 4), Shape(256, 4, 64, 4, compiled=True)):
        assert "int8" not in [one.name for one in module._candidates(CPU, shape)]


def test_a_model_that_8_bits_do_not_fit_is_refused() -> None:
    model = Decoder(n_vocab=128, context=16, d_model=24, n_layers=1, n_heads=4, d_ff=40)
    with pytest.raises(SettingError, match="multiples of 16"):
        Precision("fp8").prepare(model)
    assert FP32.prepare(model) == Precision("bf16").prepare(model) == ""


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_far_positions_are_turned_as_exactly_as_near_ones(name: str) -> None:
    """The angles are made in fp32 and reduced there: a large position is not rounded to 8 bits of mantissa."""
    model = Decoder(n_vocab=128, context=4096, d_model=32, n_layers=1, n_heads=2)
    ids_BT = torch.randint(128, (1, 4096), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model.hidden(ids_BT)
        with Precision(name).forward(CPU):
            close = model.hidden(ids_BT)
    errors_T = (close - exact).norm(dim=-1).squeeze(0) / exact.norm(dim=-1).squeeze(0)
    assert errors_T[-256:].mean() < 2 * errors_T[256:512].mean() and errors_T.max() < 0.03
