"""The vocabulary contract: what two tokenizers must agree on, and what they need not."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models

from vold_nemo.config import ConfigError
from vold_nemo.data.vocabulary import VocabularyContract
from vold_nemo.miniature.tokenizer import STUDENT_ROWS, TEACHER_ROWS, VOCABULARY, build_tokenizer


def tokenizer(tokens, specials=()):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=(*tokens, *specials)[-1])


def ids(mask):
    return mask.nonzero().flatten().tolist()


def test_identical_tokenizers_share_every_id():
    contract = VocabularyContract.from_tokenizers(build_tokenizer(), 56, build_tokenizer(), 56, padded=64)
    assert ids(contract.shared) == list(range(len(VOCABULARY)))
    assert ids(contract.sampleable) == list(range(56))
    assert (contract.student_only, contract.teacher_only) == ({}, {})


def test_a_teacher_with_extra_tokens_and_other_padding_shares_the_students_ids():
    student, teacher = build_tokenizer(), build_tokenizer(qwen3=True)
    contract = VocabularyContract.from_tokenizers(student, STUDENT_ROWS, teacher, TEACHER_ROWS, padded=128)
    assert ids(contract.shared) == list(range(53))
    assert ids(contract.sampleable) == list(range(STUDENT_ROWS))
    assert list(contract.teacher_only.values()) == ["<tool_response>", "</tool_response>", "<think>", "</think>"]
    assert contract.engine_rows == STUDENT_ROWS
    assert "<think> (55)" in contract.describe()
    assert "53 shared ids" in contract.describe()


def test_a_student_that_adopted_the_teachers_tokens_shares_them():
    adopted = build_tokenizer(qwen3=True)
    contract = VocabularyContract.from_tokenizers(adopted, 64, build_tokenizer(qwen3=True), 64, padded=64)
    assert ids(contract.shared) == list(range(57))


def test_a_different_tokenizer_is_refused_naming_the_first_differing_id():
    student = tokenizer(["a", "b", "c", "d", "end"])
    teacher = tokenizer(["a", "b", "x", "y", "end"])
    with pytest.raises(ConfigError, match=r"id 2 is 'x' for the teacher, 'c' for the student \(2 of 5 ids"):
        VocabularyContract.from_tokenizers(student, 8, teacher, 8, padded=8)


def test_special_tokens_are_compared_too():
    words = ["a", "b", "c"]
    student, teacher = tokenizer(words, ("<s>", "</s>")), tokenizer(words, ("</s>", "<s>"))
    with pytest.raises(ConfigError, match="id 3 is '</s>' for the teacher, '<s>' for the student"):
        VocabularyContract.from_tokenizers(student, 8, teacher, 8, padded=8)


def test_a_teacher_without_the_students_end_of_sequence_is_refused():
    with pytest.raises(ConfigError, match="end of sequence 3 not among them"):
        VocabularyContract.from_tokenizers(tokenizer(["a", "b", "c", "end"]), 4, tokenizer(["a", "b", "c"]), 4, padded=4)


@pytest.mark.parametrize(("rows", "key"), [((52, 64), "student.path"), ((56, 56), "teacher.path")])
def test_ids_without_an_embedding_row_are_refused(rows, key):
    with pytest.raises(ConfigError, match="embedding table") as error:
        VocabularyContract.from_tokenizers(build_tokenizer(), rows[0], build_tokenizer(qwen3=True), rows[1], padded=128)
    assert error.value.key == key


def test_without_a_teacher_the_students_ids_are_shared():
    contract = VocabularyContract.from_tokenizers(build_tokenizer(), 56, None, None, padded=64)
    assert ids(contract.shared) == list(range(53))


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_shards_put_together_are_the_whole(tensor):
    contract = VocabularyContract.from_tokenizers(build_tokenizer(), 56, build_tokenizer(qwen3=True), 64, padded=128)
    shards = [contract.shard(rank, tensor) for rank in range(tensor)]
    assert [shard.start for shard in shards] == [rank * 128 // tensor for rank in range(tensor)]
    assert torch.equal(torch.cat([shard.shared for shard in shards]), contract.shared)
    assert torch.equal(torch.cat([shard.sampleable for shard in shards]), contract.sampleable)
