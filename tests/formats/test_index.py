import pytest
import torch
from safetensors.torch import save_file

from analysis360.errors import FormatError
from analysis360.formats import Format, HeaderReader, Index, formats, index_checkpoint
from analysis360.storage.local import LocalStore


def test_nothing_known_lists_files_and_formats(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text("x")
    with pytest.raises(FormatError) as caught:
        index_checkpoint(LocalStore(tmp_path))
    for said in (
        str(tmp_path),
        "files (5 of 8): 0.txt, 1.txt",
        "formats tried: safetensors, torch",
    ):
        assert said in str(caught.value)


def test_empty_folder(tmp_path):
    with pytest.raises(FormatError, match="files: none"):
        index_checkpoint(LocalStore(tmp_path))


def test_safetensors_win_over_torch_files(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"w": torch.zeros(2), "v": torch.zeros(3)}, tmp_path / "other.pt")
    index = index_checkpoint(LocalStore(tmp_path))
    files = {t.name: t.parts[0].file for t in index.tensors}
    assert files == {"w": "model.safetensors", "v": "other.pt"}
    assert ("w", "also in safetensors, which is used") in index.skipped


def test_the_same_weights_in_bin_are_not_even_opened(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert {file for file, _, _ in index_checkpoint(LocalStore(tmp_path)).probes} == {
        "model.safetensors"
    }


def test_moments_whose_shape_is_not_the_weights_are_skipped(tmp_path):
    save_file({"w": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    save_file({"w.exp_avg": torch.ones(3, 2)}, tmp_path / "optimizer.safetensors")
    index = index_checkpoint(LocalStore(tmp_path))
    assert [t.state for t in index.tensors] == ["weight"]
    assert index.skipped == (("w.exp_avg", "shape [3, 2], but its weight has [2, 3]"),)


def test_a_format_of_ones_own(tmp_path):
    class Notes(Format):
        name = "notes"

        def matches(self, files):
            return "notes.txt" in files

        def index(self, store):
            reader = HeaderReader(store)
            return Index((), step=int(reader.read("notes.txt", 0, 3)), probes=reader.probes)

    (tmp_path / "notes.txt").write_text("123")
    formats.add("notes", Notes())
    try:
        index = index_checkpoint(LocalStore(tmp_path))
    finally:
        formats.remove("notes")
    assert index.step == 123
    assert index.probes == (("notes.txt", 0, 3),)
