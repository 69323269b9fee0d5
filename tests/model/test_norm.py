import pytest
import torch
from torch import nn

from tessera.errors import SettingError
from tessera.model.norm import LayerNorm, NoNorm, RMSNorm


def test_modules_equal_torch() -> None:
    x = torch.randn(2, 3, 8)
    for ours, theirs in [
        (LayerNorm(d_model=8, eps=0.01), nn.LayerNorm(8, eps=0.01)),
        (LayerNorm(d_model=8, bias=False), nn.LayerNorm(8, bias=False)),
        (RMSNorm(d_model=8, eps=0.01), nn.RMSNorm(8, eps=0.01)),
    ]:
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))


def test_none_is_the_identity_without_parameters() -> None:
    x = torch.randn(2, 3)
    assert NoNorm()(x) is x
    assert not list(NoNorm().parameters())


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_eps_must_be_positive(norm: type[LayerNorm] | type[RMSNorm]) -> None:
    with pytest.raises(SettingError, match="eps = 0"):
        norm(d_model=4, eps=0.0)
