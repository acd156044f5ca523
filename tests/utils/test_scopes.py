"""Building finds mmpretrain's models whatever ran before in the process."""

import pytest
from mmengine.registry import DefaultScope, init_default_scope

from helpers import make_vit
from odis_mm.transfer import build_backbone, save_backbone
from odis_mm.utils.scopes import scope_of


def test_a_scope_is_left_as_it_was_found():
    init_default_scope('mmdet')
    with scope_of('mmpretrain'):
        assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
        init_default_scope('mmengine')
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'
    with pytest.raises(ZeroDivisionError), scope_of('mmpretrain'):
        1 / 0  # noqa: B018
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'


def test_backbones_are_built_after_a_detector_ran(tmp_path):
    save_backbone(tmp_path / 'vit.pth', make_vit().state_dict(), dict(num_heads=4))
    init_default_scope('mmdet')
    assert type(build_backbone(tmp_path / 'vit.pth')).__name__ == 'ObjectViT'
