"""Which models the CPU engine has kernels for. Nothing here needs numba, or PyTorch."""

from tessera.errors import SettingError
from tessera.model.plain import plain_decoder, why_not_plain
from tessera.model.settings import DecoderSettings

HEAD_MULTIPLE = 16


def why_not(settings: DecoderSettings) -> str | None:
    """Why a model of these settings has to take another path, as a sentence; None if it need not."""
    reason = why_not_plain(settings)
    if reason is not None:
        return reason
    try:
        d_head = plain_decoder(settings, n_vocab=1).attention.d_head
    except SettingError as error:
        return str(error)
    if d_head % HEAD_MULTIPLE:
        return f"its heads are {d_head} wide, no multiple of {HEAD_MULTIPLE}"
    return None
