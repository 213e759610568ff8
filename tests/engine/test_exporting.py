"""What is said where torch can't export a model."""

import pytest
import torch
from engine_runs import eager, off, run
from small_models import Masked
from torch import Tensor, nn

from optimizer.engine.exporting import advice, depends_on_values, exporting
from optimizer.engine.onnx_export import export
from optimizer.errors import WorkError
from optimizer.methods.engines import use_another
from optimizer.recipe import PruneSpec, Recipe

PRUNED = Recipe(PruneSpec(sparsity=0.5))
TORCH_ALONE = "depends on the values of its input.*: use engine torch.$"


class Routed(nn.Module):
    """Its experts are given what chose them, and none where nothing did."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        chosen, made = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            places = (chosen == number).nonzero().squeeze(1)
            if places.numel():
                made = made.index_add(0, places, expert(x[places]))
        return made


@pytest.mark.parametrize("engine", ["sparse", "onnxruntime"])
def test_a_model_that_looks_at_values_is_left_to_torch_without_a_word_to_the_terminal(
    engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Routed().eval()
    with pytest.raises(WorkError, match=TORCH_ALONE) as raised:
        run(engine, model, Recipe(), torch.zeros(1, 4))
    assert "\x1b" not in str(raised.value)
    assert "Could not guard on data-dependent expression" in str(raised.value)
    said = capfd.readouterr()
    assert not said.err
    assert not said.out


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sparse", "onnxruntime", "openvino", "compile"])
def test_torchs_transformers_with_a_causal_mask_run_on_every_engine(engine: str) -> None:
    """Torch compares the mask with a causal one, which an export can't: it knows no values."""
    torch.manual_seed(0)
    model, images = Masked().eval(), torch.randn(3, 6, 16)
    runner = run(engine, model, PRUNED, images, batch=3)
    expected = eager(model, PRUNED, images)
    assert off(runner.score(images.numpy()), expected) < 1e-4
    model.mask.zero_()
    assert off(eager(model, PRUNED, images), expected) > 0.01, "the mask matters"


def test_torch_looks_at_masks_again_once_an_export_is_over() -> None:
    from torch.nn.modules import transformer

    detect = transformer._detect_is_causal_mask
    with exporting():
        assert not transformer._detect_is_causal_mask(Masked().mask)
    assert transformer._detect_is_causal_mask is detect
    assert detect(Masked().mask)


class Half(nn.Module):
    """Its product is in another precision, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.head(x)
        return logits.float()


def test_onnx_of_what_computes_in_bfloat16_is_refused_in_words() -> None:
    with pytest.raises(WorkError, match=r"computes in bfloat16, as in torch\.autocast.* Use engine torch"):
        run("onnxruntime", Half().eval(), Recipe(), torch.zeros(1, 4))
    with pytest.raises(WorkError, match=r"computes in bfloat16"):
        export(Half().eval(), (4,))


def test_another_error_has_the_usual_advice() -> None:
    error = RuntimeError("no such operation")
    error.__context__ = ValueError("a cause")
    error.__context__.__context__ = error
    assert not depends_on_values(error)
    assert advice("sparse", error) == use_another("sparse")
