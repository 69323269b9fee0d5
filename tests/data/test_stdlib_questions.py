"""Questions on the standard library: the same each time, read by the project's readers, and held out for good."""

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tessera.data.conversations import read_examples
from tessera.data.documents import Document, read_documents
from tessera.data.preferences import pairs_of
from tessera.data.records import read_records
from tessera.data.stdlib_questions import FILES, PHRASINGS, Questions, make_questions
from tessera.errors import InputError, SettingError
from tessera.tokenizers import Tokenizer, train_tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def module(name: str, *summaries: str) -> Document:
    functions = [f'def f{i}():\n    """{text}"""\n' for i, text in enumerate(summaries)]
    return Document(f"{name}.py", "\n".join(functions))


DOCUMENTS = [module(f"m{i}", *(f"Return the number {i} times {j}." for j in range(10))) for i in range(10)]


@pytest.fixture(scope="module")
def library() -> list[Document]:
    return list(read_documents(["python-stdlib"]))


@pytest.fixture(scope="module")
def questions(library: list[Document]) -> Questions:
    return make_questions(library, seed=1337)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer({"name": "byte", "specials": SPECIALS}, [])


def answers(records: list[dict[str, Any]]) -> list[str]:
    return [record["messages"][-1]["content"] for record in records]


def plain(text: str) -> str:
    return " ".join(text.split()).lower()


def test_there_are_thousands(questions: Questions) -> None:
    assert len(questions.train) > 3000
    assert 0.07 < len(questions.held_out) / (len(questions.train) + len(questions.held_out)) < 0.13
    assert len(questions.train_pairs) == len(questions.train)
    assert len(questions.held_out_pairs) == len(questions.held_out)
    assert questions.unread == ()
    assert f"{len(questions.train):,} questions" in questions.describe()


def test_the_same_seed_asks_the_same_and_another_does_not(library: list[Document]) -> None:
    some = library[:200]
    first, again, other = (make_questions(iter(some), seed=seed) for seed in (1337, 1337, 1338))
    assert again == first
    assert other.held_out_modules != first.held_out_modules
    both = {record["prompt"] for record in other.train_pairs} & {record["prompt"] for record in first.train_pairs}
    assert 0.1 < len(both) / len(first.train_pairs) < 0.5  # the others are put in other words, or held out


def test_no_held_out_answer_is_in_what_is_trained_on(library: list[Document], questions: Questions) -> None:
    """Checked on the docstrings of all training modules, private ones too, by another way than the code's."""
    held_out = set(answers(questions.held_out))
    assert not held_out & set(answers(questions.train))
    trained = [document for document in library if document.name not in questions.held_out_modules]
    assert list(questions.training_documents(library)) == trained
    assert len(trained) == len(library) - len(questions.held_out_modules)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        ast.get_docstring(node) or ""
        for document in trained
        for node in ast.walk(ast.parse(document.text))
        if isinstance(node, kinds)
    ]
    text = plain("\n".join(docstrings))
    assert not [short for short in held_out if plain(short) in text]
    names = {record["messages"][0]["content"].split("`")[1] for record in questions.held_out}
    assert not names & {record["messages"][0]["content"].split("`")[1] for record in questions.train}


def test_an_answer_that_is_in_the_training_text_is_not_asked() -> None:
    documents = [
        *DOCUMENTS,
        *(module(f"_copy{i}", *(f"RETURN the number {i}\n times 3." for i in range(10))) for i in "a"),
    ]
    found = make_questions(documents, seed=0, held_out=0.2)
    assert found.n_repeated == len(found.held_out_modules) == 2
    assert len(found.held_out) == 18
    assert not any(text.endswith("times 3.") for text in answers(found.held_out))
    assert "_copya.py" in {document.name for document in found.training_documents(documents)}


def test_every_summary_is_chosen_once_and_rejected_once(questions: Questions) -> None:
    for pairs in (questions.train_pairs, questions.held_out_pairs):
        assert Counter(pair["chosen"] for pair in pairs) == Counter(pair["rejected"] for pair in pairs)
        assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    by_question = {record["messages"][0]["content"]: record["messages"][1]["content"] for record in questions.train}
    assert all(by_question[pair["prompt"]] == pair["chosen"] for pair in questions.train_pairs)


def test_questions_are_put_in_several_ways(questions: Questions) -> None:
    asked = [record["messages"][0]["content"] for record in questions.train]
    starts = Counter(text.split("`")[0] for text in asked)
    assert set(starts) == {phrase.split("`")[0] for phrases in PHRASINGS.values() for phrase in phrases}
    assert any("`os.path" in text or "`posixpath.join`" in text for text in asked)


def test_they_are_read_back(questions: Questions, tokenizer: Tokenizer, tmp_path: Path) -> None:
    few = Questions(
        train=questions.train[:40],
        held_out=questions.held_out[:10],
        train_pairs=questions.train_pairs[:40],
        held_out_pairs=questions.held_out_pairs[:10],
        held_out_modules=questions.held_out_modules,
        n_modules=questions.n_modules,
        n_repeated=questions.n_repeated,
    )
    paths = few.write(tmp_path / "made" / "here")
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == sorted(FILES.values())
    examples, _ = read_examples(paths["train"], tokenizer, max_tokens=600, template="chatml")
    assert len(examples) == 40
    for record, example in zip(few.train, examples, strict=True):
        question, answer = (message["content"] for message in record["messages"])
        assert question in tokenizer.decode(example.ids.tolist())
        assert tokenizer.decode(example.ids[example.learned.astype(bool)].tolist()).startswith(f"{answer}<|im_end|>")
    pairs, _ = pairs_of(read_records(paths["held_out_pairs"]), tokenizer, max_tokens=600, template="chatml")
    assert len(pairs) == 10
    for record, pair in zip(few.held_out_pairs, pairs, strict=True):
        said = [tokenizer.decode(side.ids[side.learned.astype(bool)].tolist()) for side in (pair.chosen, pair.rejected)]
        assert [text.partition("<|im_end|>")[0] for text in said] == [record["chosen"], record["rejected"]]


def test_the_training_text_is_a_source(questions: Questions, library: list[Document], tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    n = questions.write_training_text(path, library)
    kept = list(read_documents([str(path)]))
    assert [document.text for document in kept] == [document.text for document in questions.training_documents(library)]
    assert n == len(kept)
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0])["name"] == library[0].name


def test_what_is_no_python_is_named_and_left_in_the_text() -> None:
    found = make_questions([*DOCUMENTS, Document("broken.py", "def (:")], seed=0)
    assert found.unread == ("broken.py",)
    assert Document("broken.py", "def (:") in list(found.training_documents([Document("broken.py", "def (:")]))


def test_what_cannot_be_split_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"held_out = 0: expected a share"):
        make_questions(DOCUMENTS, seed=0, held_out=0)
    with pytest.raises(InputError, match="1 documents have 1 modules with docstrings"):
        make_questions(DOCUMENTS[:1], seed=0)
    same = [module(f"m{i}", "Return the one and only thing.") for i in range(4)]
    with pytest.raises(InputError, match="every held-out answer stands in the training text"):
        make_questions(same, seed=0)
    alone = [module(f"m{i}", f"Return the thing that has number {i}.") for i in range(4)]
    with pytest.raises(InputError, match="1 of 1 questions have the same answer"):
        make_questions(alone, seed=0)
