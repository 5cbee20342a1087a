"""Runs side by side have the figures of each, and say where these cannot be compared."""

import json

import pytest

from lasertri import LasertriError, adapt
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import samples
from lasertri.result.adaptation import SUMMARY_NAME
from lasertri.result.compare import compare, notes, render_comparison, rows


@pytest.fixture(scope="module")
def result():
    options = {"edit": "step", "targets": r"h\.0\.mlp", "progress": False}
    return adapt(str(MODEL_DIR), samples(40, seed=31), held_out=samples(40, seed=32), **options).to_dict()


@pytest.fixture
def run_of(tmp_path):
    """Writes what a run measured to a folder of this name."""

    def write(name, measured):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / SUMMARY_NAME).write_text(json.dumps(measured))
        return tmp_path / name

    return write


def unedited(result):
    nothing = result["held_out"] | {"edited": None, "interval": None, "loss_interval": None, "verdict": None}
    return result | {"edit": None, "rejected": result["trials"][0], "matrices": 0, "held_out": nothing, "flips": None}


def test_every_run_is_a_row_with_its_figures(result, run_of):
    compared = compare([run_of("one", result), run_of("other", unedited(result))])
    one, other = compared["runs"]
    held_out = result["held_out"]
    gain = held_out["edited"]["accuracy"] - held_out["baseline"]["accuracy"]
    assert one["difference"] == pytest.approx(gain)
    assert one["loss_difference"] == pytest.approx(held_out["edited"]["log_loss"] - held_out["baseline"]["log_loss"])
    assert (other["difference"], other["edit"]) == (None, None)
    first, second = rows(compared)
    edit, (low, high) = result["edit"], held_out["interval"]
    assert first[:3] == ["one", f"step, {edit['direction']}, rank {edit['rank']}, size {edit['size']:g}", "40"]
    assert first[5] == f"{100 * gain:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert second[:2] == ["other", "no edit"]
    assert second[4:6] == ["–", "–"]
    assert notes(compared) == []


def test_a_truncation_is_named_by_matrix_blocks_and_ratio(result, run_of):
    truncated = {"kind": "truncate", "target": "h.0.fc_in", "blocks": 2, "rho": 0.4, "rank": 5, "clustered": False}
    further = [result | {"edit": truncated}]
    [row] = rows(compare([run_of("one", result | {"edit": truncated, "further": further})]))
    assert row[1] == "h.0.fc_in, K = 2, ρ = 0.4, and 1 more"


def test_names_are_the_last_ones_where_these_differ(result, run_of):
    folders = [run_of("a/out", result), run_of("b/out", result), run_of("c", result)]
    assert [run["run"] for run in compare(folders[1:])["runs"]] == ["out", "c"]
    assert [run["run"] for run in compare(folders)["runs"]] == [str(folder) for folder in folders]


@pytest.mark.parametrize("change", [{"n": 39}, {"majority_rate": 0.9}, {"log_loss": 9.0}, None])
def test_other_held_out_samples_are_told(result, run_of, change):
    if change is None:
        other = result | {"files": ["other.jsonl"]}
    else:
        held_out = result["held_out"]
        other = result | {"held_out": held_out | {"baseline": held_out["baseline"] | change}}
    assert "not all runs have the same samples held out" in notes(compare([run_of("a", result), run_of("b", other)]))[0]


def test_a_loss_of_another_model_says_nothing_of_the_samples(result, run_of):
    held_out = result["held_out"]
    other = result | {"model": "other", "held_out": held_out | {"baseline": held_out["baseline"] | {"log_loss": 9.0}}}
    assert compare([run_of("a", result), run_of("b", other)])["same_samples"]


def test_a_loss_with_an_adapter_says_nothing_of_the_samples(result, run_of):
    held_out, edit = result["held_out"], {"kind": "refine", "rank": 4, "size": 1.0}
    refined = result | {"edit": edit, "held_out": held_out | {"baseline": held_out["baseline"] | {"log_loss": 9.0}}}
    folders = [run_of("as it is", result), run_of("refined", refined)]
    assert compare(folders)["same_samples"]
    assert compare(folders[::-1])["same_samples"]


def test_a_run_without_held_out_figures_stands_there(result, run_of):
    refused = result | {"held_out": None, "flips": None, "refused": "no held-out figures: NaN"}
    compared = compare([run_of("one", refused)])
    assert rows(compared)[0][2:7] == ["–"] * 5
    assert notes(compared) == ["one: no held-out figures: NaN"]
    assert "no held-out figures" in render_comparison(compared).lower()


def test_the_page_has_a_row_and_an_interval_for_each(result, run_of):
    page = render_comparison(compare([run_of("<b>", result), run_of("other", unedited(result))]))
    assert page.count("<svg") == 2
    assert "&lt;b&gt;" in page
    assert "<b>:" not in page
    assert "2 runs side by side" in page


def test_what_is_no_run_is_refused(result, run_of, tmp_path):
    with pytest.raises(LasertriError, match="expected a folder that lasertri adapt -o wrote, but No such file"):
        compare([tmp_path])
    for damaged in ({}, [], {**result, "held_out": 5}):
        folder = run_of(f"damaged {type(damaged).__name__} {len(damaged)}", damaged)
        with pytest.raises(LasertriError, match="expected what this lasertri writes, but"):
            compare([folder])
