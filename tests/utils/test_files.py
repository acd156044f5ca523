"""Files of records that a full disk or a kill cut short."""

from odis_mm.utils.files import read_records


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / 'scalars.json'
    path.write_text('{"step": 1, "loss": 2.5}\n\n{"step": 2, "lo\n{"step": 3}\n7\n{"step": 4, "loss": ')
    assert read_records(path) == [dict(step=1, loss=2.5), dict(step=3)]
    path.write_text('')
    assert read_records(path) == []
