from tessera.tokenizers.byte import ByteTokenizer


def test_a_byte_is_its_id() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("hé") == [104, 0xC3, 0xA9]
    assert tokenizer.decode([104, 0xC3, 0xA9]) == "hé"
    assert (tokenizer.n_vocab, tokenizer.end_id, tokenizer.unk_id) == (257, 256, None)
    assert tokenizer.vocabulary()[255] == (255, b"\xff")


def test_half_a_character_is_marked() -> None:
    assert ByteTokenizer().decode([0xC3, 104]) == "\ufffdh"
    assert ByteTokenizer().decode_bytes([0xC3, 104]) == b"\xc3h"


def test_without_specials_there_are_256() -> None:
    tokenizer = ByteTokenizer(specials=[])
    assert (tokenizer.n_vocab, tokenizer.end_id) == (256, None)
    assert tokenizer.encode("<|endoftext|>", specials="all") == list(b"<|endoftext|>")
