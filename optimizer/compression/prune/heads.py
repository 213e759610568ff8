"""Attention heads that can go alone: their rows of queries, keys and values, and what the output projection
reads of them.

Attention is found in ``nn.MultiheadAttention``, and in a module that has an integer attribute named for its
heads (``heads``, ``num_heads``) beside the linear layers that make queries, keys and values, one or three,
and the one that reads what was attended to. How such a module lays its heads out is not known: each way is
tried on random weights, and one is believed that gives the same with a head removed as with that head not
read.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.prune.group import Group
from optimizer.model.examples import examples
from optimizer.model.layers import hooked, uses, whole_attention

HEADS = re.compile(r"heads?$")
"""Attributes that tell how many heads there are."""


class FewerHeads(nn.MultiheadAttention):
    """Attention over fewer columns than its inputs have: torch's own takes only as many.

    Inputs, outputs and masks are those of ``nn.MultiheadAttention``, but for masks of single heads.
    """

    def __init__(self, whole: nn.MultiheadAttention, rows: Tensor, columns: Tensor, heads: int) -> None:
        """What is left of ``whole``: bool ``rows`` ``[3 E]`` and ``columns`` ``[E]`` of its projections."""
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in vars(whole).items() if name not in vars(self)})
        self.train(whole.training)
        self.num_heads = heads
        self._qkv_same_embed_dim = False  # keeps torch's fused kernels, which assume E, from being used
        self.in_proj_weight = nn.Parameter(whole.in_proj_weight[rows])
        bias = whole.in_proj_bias
        self.in_proj_bias = None if bias is None else nn.Parameter(bias[rows])
        self.out_proj = copy.deepcopy(whole.out_proj)
        _keep_columns(self.out_proj, columns)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``is_causal`` only says that ``attn_mask`` is causal, as there."""
        if query is key and key is value:
            projected = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = self.in_proj_weight.chunk(3)
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            projected = tuple(map(functional.linear, (query, key, value), weights, biases))
        turned = query.dim() == 3 and not self.batch_first
        if turned:
            projected = tuple(one.transpose(0, 1) for one in projected)
        q, k, v = (one.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for one in projected)
        mask = None if attn_mask is None else _added(attn_mask, q)
        if key_padding_mask is not None:
            padding = _added(key_padding_mask[..., None, None, :], q)
            mask = padding if mask is None else mask + padding
        shares = None
        if need_weights:
            scores = q @ k.mT / self.head_dim**0.5
            shares = (scores if mask is None else scores + mask).softmax(-1)
            attended = functional.dropout(shares, self.dropout, self.training) @ v
            shares = shares.mean(-3) if average_attn_weights else shares
        else:
            attended = functional.scaled_dot_product_attention(
                q, k, v, mask, self.dropout if self.training else 0.0
            )
        joined = attended.transpose(-2, -3).flatten(-2)
        output = functional.linear(joined, self.out_proj.weight, self.out_proj.bias)
        return output.transpose(0, 1) if turned else output, shares


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to scores: a boolean one is True where nothing may be looked at."""
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill(mask, -torch.inf)


@torch.no_grad()
def head_groups(model: nn.Module, input_shape: tuple[int, ...]) -> list[Group]:
    """The heads of every attention of ``model``, for inputs ``[C, H, W]``, that can go alone.

    None of attention that runs twice, shares its layers, or does not do without a head.
    """
    names = {id(layer.module): layer.name for layer in uses(model)}
    times = Counter(names.values())
    candidates = {
        path: [
            group
            for group in _candidates(path, module, names)
            if all(times[one] == 1 for one in group.members)
        ]
        for path, module in model.named_modules()
    }
    calls = _calls(model, input_shape, [path for path, groups in candidates.items() if groups])
    found = []
    for path, once in calls.items():
        if len(once) == 1:
            module = model.get_submodule(path)
            found += [group for group in candidates[path] if _goes_alone(module, group, *once[0])][:1]
    return found


def _candidates(path: str, module: nn.Module, names: Mapping[int, str]) -> Iterator[Group]:
    """What may be the heads of one module."""
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and not module.add_zero_attn
        if plain and id(module) in names and module.num_heads > 1:
            layers = (names[id(module)],), (), (names[id(module.out_proj)],)
            yield Group(names[id(module)], module.num_heads, *layers, parts=3, attention=path)
        return
    linear = [one for one in module.children() if isinstance(one, nn.Linear) and id(one) in names]
    for heads in {value for name, value in vars(module).items() if HEADS.search(name) and _several(value)}:
        for reader in reversed(linear):
            width = reader.in_features
            if width % heads:
                continue
            others = [one for one in linear if one is not reader]
            for parts, makers in (
                (3, [one for one in others if one.out_features == 3 * width]),
                (1, [one for one in others if one.out_features == 3 * width]),
                (1, [one for one in others if one.out_features == width]),
            ):
                if makers and sum(one.out_features for one in makers) == 3 * width:
                    producers = tuple(names[id(one)] for one in makers)
                    consumers = (names[id(reader)],)
                    yield Group(producers[0], heads, producers, (), consumers, parts=parts, attention=path)


def _several(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _calls(model: nn.Module, input_shape: tuple[int, ...], paths: list[str]) -> dict[str, list[Call]]:
    """What the modules at ``paths`` are called with for an example."""
    inputs = examples(model, input_shape)
    found: dict[str, list[Call]] = {path: [] for path in paths}

    def note(path: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[path].append((inputs, named))

    noted = (
        model.get_submodule(path).register_forward_pre_hook(partial(note, path), with_kwargs=True)
        for path in paths
    )
    with hooked(noted), whole_attention():
        if paths:
            model(inputs)
    return found


def _goes_alone(module: nn.Module, group: Group, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether, with random weights, a copy without a head gives what one gives that does not read it."""
    masked = copy.deepcopy(module)
    random = torch.Generator().manual_seed(0)
    for layer in _layers(masked, group):
        weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
        weight.normal_(0, weight.shape[1] ** -0.5, generator=random)
    smaller = copy.deepcopy(masked)
    gone = torch.tensor([0])
    *_, reader = _layers(masked, group)
    reader.weight[:, ~_columns(group, gone, reader)] = 0
    try:
        smaller = fewer_heads(smaller, group, gone)
        before, after = (_first(one(*inputs, **named)) for one in (masked, smaller))
        return before.shape == after.shape and torch.allclose(before, after, rtol=1e-3, atol=1e-4)
    except Exception:  # whatever the module's own code makes of heads that it did not expect
        return False


def _first(output: Any) -> Tensor:
    """Of attention's outputs the values; its weights go by head, and may well change."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


@torch.inference_mode(False)
@torch.no_grad()
def remove_heads(model: nn.Module, group: Group, gone: Tensor) -> None:
    """Takes the heads ``gone`` out of ``model``."""
    module = model.get_submodule(group.attention)
    smaller = fewer_heads(module, group, gone)
    if smaller is not module:
        model.set_submodule(group.attention, smaller)


def fewer_heads(module: nn.Module, group: Group, gone: Tensor) -> nn.Module:
    """``module``, changed in place or replaced, without the heads ``gone``."""
    *makers, reader = _layers(module, group)
    columns = _columns(group, gone, reader)
    left = group.channels - len(gone)
    if isinstance(module, nn.MultiheadAttention):
        rows = group.staying(gone)[group.places(len(module.in_proj_weight))]
        return FewerHeads(module, rows, columns, left)
    for maker in makers:
        rows = group.staying(gone)[group.places(maker.out_features)]
        maker.weight = nn.Parameter(maker.weight[rows])
        maker.bias = None if maker.bias is None else nn.Parameter(maker.bias[rows])
        maker.out_features = len(maker.weight)
    _keep_columns(reader, columns)
    for name, value in list(vars(module).items()):
        if HEADS.search(name) and _several(value) and value == group.channels:
            setattr(module, name, left)
    return module


def _columns(group: Group, gone: Tensor, reader: nn.Linear) -> Tensor:
    """Bool ``[in]``: what the output projection still reads."""
    return group.staying(gone).repeat_interleave(reader.in_features // group.channels)


def _keep_columns(layer: nn.Linear, columns: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[:, columns])
    layer.in_features = layer.weight.shape[1]


def _layers(module: nn.Module, group: Group) -> list[Any]:
    """The layers of a group inside its attention: those that make its heads, then the one that reads them."""
    inside = [name.removeprefix(f"{group.attention}.") for name in group.members]
    return [module.get_submodule(name.rpartition(".")[0]) for name in inside]
