"""metrics.jsonl, and the table of its validations."""
import json

from vdm_jax.train import metrics


def test_validations_are_a_row_for_each_step_and_leave_out_what_is_no_validation(tmp_path):
  records = [{'step': 50, 'kind': 'train', 'loss': 2.0},
             {'step': 100, 'kind': 'validation', 'loss': 1.25},
             {'step': 1500, 'kind': 'validation', 'loss': 0.062512, 'bits_per_dim': 3.0}]
  torn = '{"step": 1600, "kind": "valid'
  (tmp_path / 'metrics.jsonl').write_text('\n'.join([*map(json.dumps, records), torn]))
  assert metrics.validations(tmp_path) == [
      ['step', 'loss', 'bits_per_dim'], ['100', '1.25', '-'], ['1,500', '0.06251', '3']]


def test_a_run_without_validations_has_no_rows(tmp_path):
  assert metrics.validations(tmp_path) == [['step']]
