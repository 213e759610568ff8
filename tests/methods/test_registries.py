"""What every entry promises, of the methods that come with the package."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import INT8, QUICK, Ready
from torch import Tensor

from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.errors import InputError
from optimizer.methods.engines import DEFAULT_ENGINE, ENGINES, REFERENCE_ENGINE, engine_info
from optimizer.methods.entries import Option
from optimizer.methods.pruners import PRUNE_OPTIONS, PRUNERS
from optimizer.methods.quantizers import QUANTIZE_OPTIONS, QUANTIZERS
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe

REGISTRIES: tuple[Mapping[str, Any], ...] = (PRUNERS, QUANTIZERS, ENGINES)


@pytest.mark.parametrize("registry", REGISTRIES)
def test_entries_have_a_name_a_label_a_phrase_and_code(registry: Mapping[str, Any]) -> None:
    assert {name: entry.name for name, entry in registry.items()} == {name: name for name in registry}
    labels = [entry.label for entry in registry.values()]
    assert len(set(labels)) == len(labels)  # the page's address holds labels
    for entry in registry.values():
        assert entry.help
        assert entry.load() is not None


def test_entries_name_options_and_values_that_there_are() -> None:
    for pruner in PRUNERS.values():
        assert set(pruner.options) <= PRUNE_OPTIONS.keys() - {"allocation"}
        assert set(pruner.allocations) <= PRUNE_OPTIONS["allocation"].choices.keys()
        assert pruner.allocation in pruner.allocations
        assert pruner.rounding in QUANTIZERS
    for quantizer in QUANTIZERS.values():
        assert set(quantizer.options) <= QUANTIZE_OPTIONS.keys()
        assert quantizer.range in QUANTIZE_OPTIONS["range"].choices
    assert {DEFAULT_ENGINE, REFERENCE_ENGINE} <= ENGINES.keys()


@pytest.mark.parametrize(("options", "spec"), [(PRUNE_OPTIONS, PruneSpec), (QUANTIZE_OPTIONS, QuantizeSpec)])
def test_an_option_and_its_field_have_one_default(options: Mapping[str, Option], spec: type) -> None:
    defaults = {field.name: field.default for field in fields(spec)}
    assert {name: option.default for name, option in options.items()} == {
        name: defaults[name] for name in options
    }


def test_what_needs_no_data_compresses_without_and_what_does_asks_for_it(ready: Ready) -> None:
    model, _ = ready("torch", "cnn")
    pruned = {
        Recipe(PruneSpec(name, 0.5, allocation="uniform")): pruner.needs_data
        for name, pruner in PRUNERS.items()
        if not pruner.shrinks
    }
    rounded = {
        Recipe(quantize=QuantizeSpec(name, 4)): quantizer.needs_data for name, quantizer in QUANTIZERS.items()
    }
    for recipe, needs_data in (pruned | rounded).items():
        assert recipe.needs_data == needs_data
        if needs_data:
            with pytest.raises(InputError, match="works from calibration images"):
                compress(model, recipe)
        else:
            changed = compress(model, recipe).module.state_dict()
            assert any(not torch.equal(changed[name], value) for name, value in model.state_dict().items())


def test_a_method_refuses_what_its_entry_does_not_take() -> None:
    for name, pruner in PRUNERS.items():
        if not pruner.thresholds:
            with pytest.raises(InputError, match=f"pruning method {name} takes no threshold"):
                PruneSpec(name, threshold=0.1)
        if "pattern" not in pruner.options:
            with pytest.raises(InputError, match=f"pruning method {name} takes no pattern"):
                PruneSpec(name, 0.5, pattern="4x4")
        if not pruner.per_layer:
            with pytest.raises(InputError, match=f"pruning method {name} changes the network, not one layer"):
                Override("a", pruning=name)
    assert not all(pruner.thresholds and pruner.per_layer for pruner in PRUNERS.values())


@pytest.mark.parametrize("engine", QUICK)
def test_engines_have_int8_kernels_where_their_entry_says_so(
    engine: str, ready: Ready, small_images: Tensor
) -> None:
    model, build = ready(engine, "cnn")
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
    ran = {layer.precision for layer in runner.execution.layers}
    assert bool(ran & set(INT8)) == engine_info(engine).int8
    assert np.isfinite(runner.infer(small_images[:1].numpy())).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_that_comes_along_runs_here(engine: str) -> None:
    assert engine_named(engine).problem() is None


def test_of_an_engine_that_is_not_here_only_the_name_is_known() -> None:
    assert engine_info("gone").label == "gone"
    assert not engine_info("gone").streams
