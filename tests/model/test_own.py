"""A module of one's own, named by what it computes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_models import Counted
from torch import Tensor, nn
from torch.nn import functional

from optimizer.errors import InputError
from optimizer.measurement.workspace import open_model
from optimizer.model.folding import fold_batch_norm
from optimizer.model.own import own_model


def test_the_size_of_its_inputs_is_part_of_a_name() -> None:
    """Images in a folder are the same ones, whatever they are scaled to."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    small, again, large = (own_model(net, (3, side, side)).card for side in (8, 8, 16))
    assert small.name == again.name != large.name


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda net: torch.jit.trace(net, torch.zeros(1, 3, 2, 2)),
        lambda net: nn.Sequential(net[0], torch.jit.trace(net[1], torch.zeros(1, 12))),
    ],
    ids=["whole", "a part"],
)
def test_torchscript_is_refused_with_what_to_give(make: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="is TorchScript.*: give the module that it was made from"):
        own_model(make(net), (3, 2, 2))


@pytest.mark.filterwarnings("ignore:torch.*:DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_layers_that_torch_quantized_are_refused_with_what_to_give() -> None:
    """Their weights are no parameters: they would be missing from counts and sizes."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with pytest.raises(InputError, match=r"2 \(Linear\) is quantized already.*as it was before"):
        own_model(quantized, (3, 2, 2))


class Quantizable(nn.Module):
    """In float32 and ready to be quantized, as torchvision's quantizable models are."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.stem, self.block, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.quant(x))
        x = self.add.add_relu(x, self.norm(self.block(x)))
        return self.head(self.dequant(x).flatten(1))


@pytest.mark.filterwarnings("ignore:torch.*:DeprecationWarning")
def test_a_model_that_is_only_ready_to_be_quantized_is_taken() -> None:
    net = Quantizable().eval()
    taken, images = own_model(net, (3, 2, 2)).module, torch.randn(2, 3, 2, 2)
    folded, notes = fold_batch_norm(taken, (3, 2, 2))
    assert not notes
    torch.testing.assert_close(folded(images), net(images))


def test_weights_on_the_meta_device_are_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    net[1].weight = nn.Parameter(net[1].weight.to("meta"))
    with pytest.raises(InputError, match=r"1.weight is on the meta device.*load_state_dict"):
        own_model(net, (3, 2, 2))


def test_hooks_are_left_out_which_a_note_says() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    plain = own_model(net, (3, 2, 2))
    net[1].register_forward_hook(lambda module, given, outputs: 2 * outputs)
    net[1].register_forward_pre_hook(lambda module, given: None)
    hooked = own_model(net, (3, 2, 2))
    assert open_model(plain).notes == ()
    (note,) = open_model(hooked).notes
    assert note.startswith("hooks are left out, those of 1: where one changes what goes in or comes out")
    assert hooked.card.name != plain.card.name, "each has results of its own, with their notes"


class AlwaysDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(functional.dropout(images.flatten(1), 0.5))


def test_a_network_that_draws_its_answers_has_a_note() -> None:
    (note,) = open_model(own_model(AlwaysDropping(), (3, 2, 2))).notes
    assert note.startswith("the answer to the same input changes from call to call")


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.flatten(1) - images.flatten(1).mean(0))


def test_a_network_whose_answers_depend_on_the_batch_has_a_note() -> None:
    normed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    for network in (Centred(), normed.append(nn.Linear(16, 5))):
        notes = open_model(own_model(network, (3, 2, 2))).notes
        assert sum("depends on those that are in a batch with it" in note for note in notes) == 1


def test_a_network_that_drops_the_batch_of_one_does_not_depend_on_it() -> None:
    class Squeezed(Centred):
        def forward(self, images: Tensor) -> Tensor:
            return self.last(images.flatten(1)).squeeze()

    assert not open_model(own_model(Squeezed(), (3, 2, 2))).notes


def test_a_state_that_holds_more_than_tensors_is_taken() -> None:
    assert own_model(nn.Sequential(nn.Flatten(), Counted(12, 5)), (3, 2, 2)).card.classes == 5


class Normalised(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.5
        return self.layers(images)  # type: ignore[no-any-return]


class Remembering(nn.Module):
    """Answers with what it saw before, or makes a table in its first forward and counts its calls."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always, self.head = always, nn.Linear(4, 3)
        self.register_buffer("seen", torch.full((4,), torch.nan))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.always or self.seen.isnan().any():
            self.seen = x.mean(0) if self.always else torch.ones(4)
        return self.head(x + self.seen)


def test_a_module_that_changes_its_buffers_in_each_forward_is_refused() -> None:
    with pytest.raises(InputError, match="changes seen each time that it runs.*in training mode alone"):
        own_model(Remembering(always=True), (4,))
    own_model(Remembering(always=False), (4,))


@pytest.mark.parametrize(
    "make",
    [Normalised, lambda net: nn.Sequential(net[0], nn.ReLU(inplace=True), net[1])],
    ids=["subtracted", "clipped"],
)
def test_a_module_that_writes_into_its_input_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    """Of images that several networks see the second would see other ones."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="changes its input in place.*x = x - 0.5"):
        own_model(make(net), (3, 2, 2))
    loaded = replace(own_model(net, (3, 2, 2)), module=make(net).eval())
    with pytest.raises(InputError, match="Sequential-.* changes its input in place"):
        open_model(loaded)
    own_model(nn.Sequential(*net, nn.ReLU(inplace=True)), (3, 2, 2))


@pytest.mark.parametrize(
    ("shape", "of_images", "words"),
    [
        (
            (8, 8, 3),
            True,
            r"\. The images decide the shape.*These look like \[N, H, W, C\]: put the channels",
        ),
        ((3, 4, 4), True, r"\. The images decide the shape: give them as the model takes them.*of images$"),
        ((3, 4, 4), False, r"\. Give the shape that it takes with input_shape, or an example_input$"),
    ],
    ids=["channels last", "too small", "a shape alone"],
)
def test_inputs_that_a_module_fails_on_are_told_with_what_can_be_changed(
    shape: tuple[int, ...], of_images: bool, words: str
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Linear(2, 5))
    with pytest.raises(InputError, match=rf"fails in evaluation mode on inputs of shape.*{words}") as raised:
        own_model(net, shape, of_images)
    assert ".." not in str(raised.value)


class Tokens(nn.Module):
    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.table, self.head, self.alone = nn.Embedding(9, 4), nn.Linear(4, 5), alone

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.table(tokens.long() if self.alone else tokens)
        return self.head(hidden.mean(1).view(1, 4) if self.alone else hidden.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("alone", "words"),
    [
        (False, r"\. It takes whole numbers.*x = x\.long\(\)$"),
        (True, r"\. It takes one input at a time: have"),
    ],
)
@pytest.mark.parametrize("of_images", [True, False])
def test_inputs_of_another_type_or_number_are_told_as_such(alone: bool, words: str, of_images: bool) -> None:
    with pytest.raises(InputError, match=rf"fails in evaluation mode on inputs of shape \[2, 6\].*{words}"):
        own_model(Tokens(alone), (6,), of_images, torch.randint(9, (4, 6)).float())


class Halved(nn.Module):
    """In float16 but for its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4).half(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.body(x.half()).float())
        return hidden


def test_a_module_that_takes_its_inputs_in_its_own_types_alone_is_told_so() -> None:
    net, given = Halved(), torch.rand(2, 4)
    assert net(given).shape == (2, 3)
    with pytest.raises(InputError, match=r"measured in float32.*as x\.to\(self\.layer\.weight\) does$"):
        own_model(net, (4,))
    with pytest.raises(InputError, match="Give the shape"):
        own_model(net, (5,))
    assert net.body.weight.dtype == torch.float16


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning", "ignore::UserWarning")
def test_a_module_that_trains_with_rounded_weights_is_sent_back_for_what_it_was_before() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).train()
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"nothing to compress.*0 \(Conv2d\) rounds its weight.*before"):
        own_model(torch.ao.quantization.prepare_qat(net), (3, 2, 2))


class Cut(nn.Linear):
    """Of its logits, those that ``cut`` gives."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__(4, 3)
        self.cut = cut

    def forward(self, images: Tensor) -> Tensor:
        return self.cut(super().forward(images))


@pytest.mark.parametrize(
    ("cut", "given"),
    [
        (lambda logits: logits[:, 0], r"torch\.float32 \[2\]"),
        (lambda logits: logits[:, :0], r"torch\.float32 \[2, 0\]"),
        (lambda logits: logits.argmax(1, keepdim=True), r"torch\.int64 \[2, 1\]"),
        (lambda logits: logits.to(torch.complex64), r"torch\.complex64 \[2, 3\]"),
    ],
)
def test_outputs_that_can_not_be_scored_are_named(cut: Callable[[Tensor], Tensor], given: str) -> None:
    with pytest.raises(InputError, match=rf"gives {given}, not one tensor of floats.*one number.* \[N, 1\]"):
        own_model(nn.Sequential(nn.Linear(4, 4), Cut(cut)), (4,))


class Dotted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("only 8 inputs are taken.")


def test_a_module_s_own_words_end_with_one_full_stop() -> None:
    with pytest.raises(InputError, match=r"only 8 inputs are taken\. Give the shape"):
        own_model(Dotted(), (4,))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(images), self.second(images)


def test_a_module_of_several_outputs_is_sent_to_onnx() -> None:
    with pytest.raises(InputError, match=r"gives tuple.*or export it to ONNX.*several outputs are compared"):
        own_model(TwoHeads(), (4,))


def test_what_is_said_to_be_no_classifier_is_another_model_where_its_shape_says_otherwise() -> None:
    torch.manual_seed(0)
    flat, maps = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Conv2d(3, 4, 1)
    cards = [
        own_model(net, (3, 2, 2), classifier=said).card for net in (flat, maps) for said in (True, False)
    ]
    assert [card.classes for card in cards] == [5, 0, 0, 0]
    assert cards[0].name != cards[1].name
    assert cards[2] == cards[3]


def test_a_module_without_weights_yet_is_to_be_run_first() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(InputError, match=r"0 \(LazyConv2d\) has no weights yet.*Run the model once"):
        own_model(net, (3, 4, 4))
    net(torch.zeros(1, 3, 4, 4))
    assert own_model(net, (3, 4, 4)).card.classes == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_compile_gave_back_is_taken_for_what_it_was_given() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    usual = own_model(net, (4,))
    whole = own_model(torch.compile(net), (4,))  # type: ignore[arg-type]
    part = own_model(nn.Sequential(torch.compile(net[0]), *net[1:]), (4,))
    assert whole.card.name == part.card.name == usual.card.name
    assert type(part.module[0]) is nn.Linear  # type: ignore[index]


def test_an_exported_graph_is_sent_back_for_the_module_that_it_was_made_from() -> None:
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 2)), (torch.zeros(2, 4),)).module()
    with pytest.raises(
        InputError, match=r"as torch.export makes it.*give the module that it was exported from"
    ):
        own_model(exported, (4,))
