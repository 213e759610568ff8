"""ONNX files that are hostile or can't be converted: refused in a sentence, out of this process."""

from pathlib import Path

import numpy as np
import pytest
from hostile_graphs import graph, hostile_graphs, node, save, unconvertible_graphs
from test_hostile_weights import is_a_sentence
from test_onnx_files import read

from optimizer.errors import InputError
from optimizer.model import catalogue
from optimizer.model.added import cards, files, limits, onnx_check
from optimizer.model.added.onnx_operators import OPERATORS
from optimizer.model.added.onnx_reading import read_onnx

HOSTILE = dict(hostile_graphs())
UNCONVERTIBLE = dict(unconvertible_graphs())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(5122))
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "given.onnx"
    path.write_bytes(HOSTILE[name])
    words = ""
    try:
        read_onnx(path, tmp_path / "kept.onnx", True, lambda more: None)
    except Exception as error:
        words = limits.refusal(error)
    assert is_a_sentence(words)
    assert not (tmp_path / "kept.onnx").exists()


def test_text_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.onnx"
    path.write_text("no network")
    with pytest.raises(InputError, match="^it is no ONNX file, or a damaged one"):
        read_onnx(path, tmp_path / "kept.onnx", False, lambda more: None)


@pytest.mark.parametrize("name", [name for name in UNCONVERTIBLE if not name.startswith("memory")])
def test_what_can_t_be_converted_is_named(name: str, tmp_path: Path) -> None:
    model = UNCONVERTIBLE[name]
    kept, found = read(model, tmp_path)
    with pytest.raises(InputError) as refused:
        onnx_check.check(kept, tuple(found["shape"]))
    assert is_a_sentence(str(refused.value))
    operators = [one.op_type for one in model.graph.node]
    assert any(f"{kind} (node" in str(refused.value) for kind in operators) or "output" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in UNCONVERTIBLE if name.startswith("memory")])
def test_a_graph_that_asks_for_all_memory_ends_in_its_own_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RUN_SECONDS", 2)
    about = files.examine(save(UNCONVERTIBLE[name], tmp_path / "bomb.onnx"))
    with pytest.raises(InputError, match="bomb is refused") as refused:
        catalogue.add(about, cards.Choices("bomb"))
    assert is_a_sentence(str(refused.value))
    assert "bomb" not in catalogue.catalogue()


@pytest.mark.slow
def test_a_small_file_may_take_much_to_run(tmp_path: Path) -> None:
    """As a segmentation network does, whose weights are few for the pixels that it answers."""
    nodes = [node("Conv", "x w", "a"), node("Conv", "a v")]
    weights = {"w": np.ones((64, 3, 1, 1), np.float32), "v": np.ones((4, 64, 1, 1), np.float32)}
    path = save(graph(nodes, weights, sides=(1, 3, 640, 640)), tmp_path / "wide.onnx")
    assert files.opened(files.examine(path), cards.Choices()).card.input_shape == (3, 640, 640)


def test_what_gets_no_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(OPERATORS, "Relu", fails)
    kept, found = read(graph([node("Relu", "x")]), tmp_path)
    with pytest.raises(InputError, match=r"Relu \(node 'Relu_y'\) on \[\[1, 3, 16, 16\]\] takes more memory"):
        onnx_check.check(kept, tuple(found["shape"]))
