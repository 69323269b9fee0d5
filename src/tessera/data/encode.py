"""Documents -> ids. A tokenizer knows lines and characters; which document they are of is added here."""

from collections.abc import Sequence

import numpy as np

from tessera.data.documents import Document
from tessera.errors import InputError
from tessera.tokenizers.contract import Tokenizer


def encoded(documents: Sequence[Document], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The ids of each document; what a tokenizer cannot read is an error that names the document."""
    try:
        return tokenizer.encode_batch([document.text for document in documents])
    except InputError:
        for document in documents:
            try:
                tokenizer.encode_batch([document.text])
            except InputError as error:
                raise InputError(f"{document.name}: {error}") from None
        raise
