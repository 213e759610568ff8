"""ONNX files that are hostile or can't be converted: refused in a sentence, out of this process."""

from pathlib import Path

import pytest
from hostile_graphs import hostile_graphs, save, unconvertible_graphs
from test_hostile_weights import is_a_sentence
from test_onnx_files import read

from optimizer.errors import InputError
from optimizer.model import catalogue
from optimizer.model.added import cards, files, limits, onnx_check
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
def test_a_graph_that_asks_for_all_memory_ends_in_its_own_process(name: str, tmp_path: Path) -> None:
    about = files.examine(save(UNCONVERTIBLE[name], tmp_path / "bomb.onnx"))
    with pytest.raises(InputError, match="bomb is refused") as refused:
        catalogue.add(about, cards.Choices("bomb"))
    assert is_a_sentence(str(refused.value))
    assert "bomb" not in catalogue.catalogue()
