"""A module of one's own as a model: checked, copied, and named by its architecture and weights."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
import torch.fx
from PIL import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._pytree import tree_leaves

from optimizer.errors import InputError
from optimizer.formats import listed
from optimizer.model.computed import HOOKS, computed, copied, replace_computed, uncompiled
from optimizer.model.examples import agree, answers, examples, forget, hold, noise, same_draws
from optimizer.model.identity import content
from optimizer.model.layers import tensors, walk
from optimizer.model.preprocessing import CROP_SHARE
from optimizer.model.sources import LoadedModel
from optimizer.model.unused import unused
from optimizer.records import ModelCard

SOURCE_NAME = "your own"
NAME_DIGITS = 10
CHANNELS = (1, 3, 4)
"""Of images that are grey, in colour, and in colour with transparency."""
STATISTICS = ("running_mean", "running_var")
"""Buffers that a norm learns."""
COMPILED = "_is_torch_compile"
"""What torch.compile leaves in a module that it is given."""
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
"""Where torch has modules that compute with integers."""
TRAINS_QUANTIZED = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat")
"""Where it has those that round their weights as they train."""
FLOAT_YET = ("FloatFunctional", "FXFloatFunctional")
"""Those among them that add and join floats until the model is converted, as torchvision's quantizable models
do."""
GIVE_SHAPE = "Give the shape that it takes with input_shape, or an example_input"


def own_model(
    module: nn.Module,
    input_shape: Sequence[int],
    of_images: bool = False,
    given: Tensor | None = None,
    classifier: bool = True,
) -> LoadedModel:
    """A copy of ``module`` on the CPU in float32 and evaluation mode; the module itself is left as it was.
    Weights that it computes from others (:mod:`optimizer.model.computed`) are parameters in the copy.

    ``input_shape`` is that of one example without its batch, such as ``[C, H, W]``; ``of_images`` where it is
    that of the images that were given, so that an error asks for other images. It is tried on the first
    inputs that were ``given`` ``[N, ...]``, see :mod:`optimizer.model.examples`. Outputs ``[N, K]`` are
    logits unless it is said to be no ``classifier``. The name holds a digest
    of code, weights and that shape (:func:`optimizer.model.identity.content`), so that retrained weights are
    another model. Files of photographs are preprocessed as is usual for ImageNet. Raises InputError for a
    module that is TorchScript, an exported graph or quantized, lacks its weights or can't be copied, has
    weights that are not finite or not the same in each forward, nothing to compress, or does not answer a
    batch of one input tensor with one tensor of floats in evaluation mode.
    """
    shape = tuple(int(side) for side in input_shape)
    if not shape or min(shape) < 1:
        raise InputError(f"input shape {shape} is not allowed: sides of 1 or more, such as (3, 224, 224)")
    module = uncompiled(module)
    taken = _copied(module)
    hooked = _drop_hooks(taken)
    hold(taken, shape, given)
    _make_parameters(taken, shape)
    outputs = tried(taken, shape, of_images, module)
    classes = outputs.shape[1] if outputs.ndim == 2 and outputs.shape[1] > 1 else 0
    unrun = unused(taken, shape)  # which is left out of what is measured
    notes = (*_notes_on_hooks(hooked), *_notes_on_chance(taken, shape))
    without = [f"hooks of {name}" for name in hooked]
    about = (taken, shape, *unrun, *without, *([] if classifier or not classes else ["no classifier"]))
    card = ModelCard(
        name=f"{_kind(module)}-{content(about)[:NAME_DIGITS]}",
        source=SOURCE_NAME,
        description=f"{_kind(module)}, a module of your own",
        parameters=sum(parameter.numel() for parameter in taken.parameters()),
        input_shape=shape,
        classes=classes if classifier else 0,
    )
    return LoadedModel(card, taken, _photograph_preset(shape), (), notes=notes)


def tried(
    module: nn.Module,
    shape: tuple[int, ...],
    of_images: bool = False,
    own: nn.Module | None = None,
) -> Tensor:
    """What a module in evaluation mode answers to two inputs of ``shape``: ``[2, ...]``. It may be made of a
    user's ``own``, which has other types. Raises InputError for one that can't be measured, as
    :func:`own_model` says."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors(module).items():
        learned = name in parameters or name.rpartition(".")[2] in STATISTICS
        if not tensor.is_floating_point():
            continue
        if tensor.isnan().any() or (learned and tensor.isinf().any()):  # in other buffers, masks have -inf
            raise InputError(f"{name} has values that are not finite: load whole weights into the model")
    layers = list(walk(module))
    if empty := next((layer for layer in layers if not layer.weight.numel()), None):
        sides = list(empty.weight.shape)
        raise InputError(f"{empty.name} is empty (a weight of shape {sides}): leave it out of the model")
    if not layers:
        raise InputError(
            f"{_kind(module)} has nothing to compress: no convolution, linear layer or attention projection "
            f"that multiplies with its weight as it is{_rounded_in_training(module)}"
        )
    outputs = _answer(module, shape, _advice(shape) if of_images else GIVE_SHAPE, own)
    check_changes_nothing(module, shape, _kind(module))
    return outputs


def _rounded_in_training(module: nn.Module) -> str:
    """What to give in place of a module that is prepared for quantization-aware training."""
    for path, part in module.named_modules():
        if type(part).__module__.startswith(TRAINS_QUANTIZED):
            return (
                f". {path or 'It'} ({type(part).__name__}) rounds its weight in each forward, as "
                "quantization-aware training does: give the model as it was before that was prepared, with "
                "the weights that it has learnt"
            )
    return ""


def _is_exported(module: nn.Module) -> bool:
    """Whether it is a graph that calls operations in the place of modules."""
    nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    return any(isinstance(node.target, torch._ops.OpOverload) for node in nodes)


def check_changes_nothing(module: nn.Module, shape: tuple[int, ...], name: str) -> None:
    """Raises InputError for a module that writes into its input, since images are evaluated by several
    networks, one after the other, or into its buffers each time, since what it answers would depend on what
    it answered before; and for one that takes no single one."""
    images = examples(module, shape, 2)
    before = images.clone()
    try:
        with torch.random.fork_rng(devices=()), torch.inference_mode():
            changed = _changed_buffers(module, images[:1]) and _changed_buffers(module, images[1:])
    except Exception as error:  # a model's own code: anything may come out of it
        raise InputError(
            f"{name} fails in evaluation mode on an input of shape {[1, *shape]}: {_first_line(error)}. "
            "Engines give it one at a time too: have its forward keep the batch, also of one"
        ) from error
    if not torch.equal(images, before):
        raise InputError(
            f"{name} changes its input in place, and whatever is given the same images after it would see "
            "other ones: write x = x - 0.5 in place of x -= 0.5 there, and give a first layer no inplace=True"
        )
    if changed:
        raise InputError(
            f"{name} changes {listed(changed)} each time that it runs, so that its answers may depend on "
            "those before: have its forward do so in training mode alone (if self.training)"
        )


def _changed_buffers(module: nn.Module, images: Tensor) -> list[str]:
    """The buffers of floats that a forward changes. (What it makes once, as tables of positions, it makes in
    the first.)"""
    buffers = {name: one.clone() for name, one in module.named_buffers() if one.is_floating_point()}
    module(images)
    now = dict(module.named_buffers())
    kept = {name for name, one in buffers.items() if name in now and now[name].shape == one.shape}
    same = {name for name in kept if torch.allclose(now[name], buffers[name], 0, 0, equal_nan=True)}
    return [name for name in buffers if name not in same]


def _photograph_preset(shape: tuple[int, ...]) -> Callable[[Image.Image], Tensor]:
    """ImageNet's usual preprocessing at the size of square ``[3, H, H]``."""
    if len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2]:
        from torchvision.models import ResNet18_Weights

        preset: Callable[[Image.Image], Tensor] = ResNet18_Weights.IMAGENET1K_V1.transforms(
            crop_size=shape[1], resize_size=round(shape[1] / CROP_SHARE)
        )
        return preset

    def refuse(image: Image.Image) -> Tensor:
        raise InputError(
            f"how files become inputs of shape {list(shape)} is not known: give arrays or a dataset"
        )

    return refuse


def _copied(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{type(module).__name__} is no model: give a torch.nn.Module, or a name of px.models()"
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise InputError(
            f"{_kind(module)} is TorchScript, or has a part that is, whose layers can't be replaced: give "
            "the module that it was made from, with its weights"
        )
    if any(map(_is_exported, module.modules())) and not any(walk(module)):
        raise InputError(
            f"{_kind(module)} is a graph of operations, as torch.export makes it, whose layers are no "
            "modules any more and can't be replaced: give the module that it was exported from, with its "
            "weights"
        )
    for path, part in module.named_modules():
        if type(part).__module__.startswith(QUANTIZED) and type(part).__name__ not in FLOAT_YET:
            raise InputError(
                f"{path or 'it'} ({type(part).__name__}) is quantized already, and keeps its weights where "
                "they can't be compressed or counted: give the model as it was before"
            )
        if any(map(is_lazy, part.parameters(recurse=False))):
            raise InputError(
                f"{path or 'it'} ({type(part).__name__}) has no weights yet: it takes their shape from the "
                "first input. Run the model once on an example, then give it"
            )
        for name, held in (*part.named_parameters(path, recurse=False), *part.named_buffers(path, False)):
            if held.is_meta:
                raise InputError(
                    f"{name} is on the meta device, and has no values: load the model's weights first, with "
                    "load_state_dict(..., assign=True)"
                )
    try:
        taken = copied(module)
    except Exception as error:  # what a module holds may refuse to be copied in ways of its own
        raise InputError(
            f"{_kind(module)} can't be copied ({_first_line(error)}): its parameters must be leaf tensors, "
            "and what else it holds must be what copy.deepcopy copies. If it keeps results of a forward, run "
            "it once under torch.no_grad(), or delete them"
        ) from error
    forget(taken)
    taken = taken.eval().cpu().float()  # in training, spectral norms of recurrent layers go on as these move
    for part in taken.modules():
        vars(part).pop(COMPILED, None)
    return taken


def _drop_hooks(taken: nn.Module) -> list[str]:
    """Take out hooks, which would call back into what is not copied; gives whose may be missed."""
    found: list[str] = []
    for path, part in taken.named_modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
            for number in [number for number, hook in hooks.items() if not isinstance(hook, HOOKS)]:
                del hooks[number]
                if hooks is not part._backward_hooks:
                    found.append(path or "the whole model")
    return [*dict.fromkeys(found)]


def _notes_on_hooks(hooked: list[str]) -> Iterator[str]:
    if hooked:
        yield (
            f"hooks are left out, those of {listed(hooked)}: where one changes what goes in or "
            "comes out there, these figures are of the network without it"
        )


def _notes_on_chance(module: nn.Module, shape: tuple[int, ...]) -> Iterator[str]:
    if not agree(answers(module, shape), answers(module, shape, seed=1)):
        yield (
            "the answer to the same input changes from call to call, as where dropout stays on in evaluation "
            "mode: accuracy and drop are those of one draw"
        )
    elif _depends_on_batch(module, shape):
        yield (
            "the answer to an input depends on those that are in a batch with it, as where batch norm has no "
            "running statistics: accuracy and drop are those of the batches that it was scored in"
        )


def _depends_on_batch(module: nn.Module, shape: tuple[int, ...]) -> bool:
    one, others = examples(module, shape), noise(module, shape, 2)

    def beside(other: Tensor) -> list[Tensor]:
        with same_draws():
            given = tree_leaves(module(torch.cat([one, other[None]])))
        return [part[:1] for part in given if isinstance(part, Tensor) and part.shape[:1] == (2,)]

    with torch.inference_mode(), suppress(Exception):  # of its own code
        return not agree(beside(others[0]), beside(others[1]))
    return False


def _make_parameters(taken: nn.Module, shape: tuple[int, ...]) -> None:
    """Of the weights that it computes from others, and no parameter learns any more. Raises InputError where
    they are not the same in each forward."""
    names = [*computed(taken)]
    before = None
    if names:
        with suppress(Exception):  # of the model's own code: `tried` says it
            before = [answers(taken, shape) for _ in range(2)][1]  # a hook may come before what it reads
        replace_computed(taken)
    taken.requires_grad_(False)
    if before is not None and not agree(before, answers(taken, shape)):
        raise InputError(
            f"the parametrization of {', '.join(names)} does not give {_kind(taken)} the same weights in "
            "each forward in evaluation mode: remove it (torch.nn.utils.parametrize.remove_parametrizations)"
        )


def _kind(module: nn.Module) -> str:
    return type_before_parametrizations(module).__name__


def _advice(shape: tuple[int, ...]) -> str:
    """What to do about images of a shape that a module fails on."""
    words = (
        "The images decide the shape: give them as the model takes them, [N, C, H, W] for a network of images"
    )
    if len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS:
        return f"{words}. These look like [N, H, W, C]: put the channels first"
    return words


def _answer(module: nn.Module, shape: tuple[int, ...], advice: str, own: nn.Module | None) -> Tensor:
    """What it gives for two inputs: one tensor ``[2, ...]`` of floats. Raises InputError, with ``advice``
    where it fails on them, and ``own``, which it was made of, does too."""
    needed = [
        name
        for name, one in inspect.signature(module.forward).parameters.items()
        if one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        raise InputError(
            f"{_kind(module)} needs {len(needed)} inputs ({', '.join(needed)}): wrap it in a module whose "
            "forward takes one tensor"
        )
    inputs, state = examples(module, shape, 2), torch.get_rng_state()
    try:
        with torch.inference_mode():
            outputs = module(inputs)
    except Exception as error:  # a model's own code: anything may come out of it
        raise InputError(
            f"{_kind(module)} fails in evaluation mode on inputs of shape {[2, *shape]}: {_first_line(error)}"
            f". {_other_input(module, inputs, own) or advice}"
        ) from error
    finally:
        torch.set_rng_state(state)
    is_tensor = isinstance(outputs, Tensor)
    if not is_tensor or not outputs.is_floating_point() or outputs.ndim < 2 or not outputs.numel():
        what = f"{outputs.dtype} {list(outputs.shape)}" if is_tensor else type(outputs).__name__
        raise InputError(
            f"{_kind(module)} gives {what}, not one tensor of floats [N, ...] with a row for each input: "
            "wrap it in a module that gives its logits [N, K], or one number an input as [N, 1], or export "
            "it to ONNX and give the file: there several outputs are compared"
        )
    if len(outputs) != 2:
        raise InputError(f"{_kind(module)} gives {len(outputs)} rows for 2 inputs: it must give one for each")
    answer: Tensor = outputs.clone()
    return answer


def _other_input(module: nn.Module, inputs: Tensor, own: nn.Module | None) -> str:
    """What to do where it is the batch, or the type of the ``inputs`` or of weights, that a module fails
    on."""
    if own is not None and _takes(copied(own).eval(), inputs):
        return (
            "It takes them with the types and on the device that its weights had when it was given, and is "
            "measured in float32 on the CPU: where its forward has x.half() or x.cuda(), have it follow its "
            "weights, as x.to(self.layer.weight) does"
        )
    if _takes(module, inputs.long()):
        return "It takes whole numbers, which are given as floats: have its forward begin with x = x.long()"
    if _takes(module, inputs[:1]):
        return "It takes one input at a time: have its forward keep the batch, as x.flatten(1) does"
    return ""


def _takes(module: nn.Module, inputs: Tensor) -> bool:
    with suppress(Exception), torch.random.fork_rng(devices=()), torch.inference_mode():
        module(inputs)
        return True
    return False


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line.rstrip('. ')}"
