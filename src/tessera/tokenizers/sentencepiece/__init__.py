"""The SentencePiece family: unigram and byte-pair vocabularies of pieces with a mark for the space, and their files."""
