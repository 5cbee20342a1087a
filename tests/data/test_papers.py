"""The papers' tasks, from small files of each source's own form and from a copy of the hub's parquet branch."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from subwords import byte_level
from tiny import make_model
from typer.testing import CliRunner

from lasertri import LasertriError, Sample, task_samples
from lasertri.cli import app
from lasertri.data.papers import registry
from lasertri.data.papers.bios import ONE_TOKEN, PROFESSIONS
from lasertri.data.papers.source import REVISION
from lasertri.data.sample import MASK

FACT = {
    "case_id": 0,
    "requested_rewrite": {"prompt": "The mother tongue of {} is", "subject": "D {1}", "target_true": {"str": "French"}},
    "paraphrase_prompts": ["Noise. D spoke", "D's own words are"],
}
CLAIMS = [
    {"claim": "Ice is cold.", "label": "SUPPORTS", "id": 1},
    {"claim": "Fire is cold", "label": "REFUTES", "id": 2},
    {"claim": "Ice is cold.", "label": "SUPPORTS", "id": 3},
    {"claim": "Both ways.", "label": "REFUTES", "id": 4},
    {"claim": "Both ways.", "label": "SUPPORTS", "id": 5},
    {"claim": "Who knows?", "label": "NOT ENOUGH INFO", "id": 6},
    {"claim": "Fire is cold", "label": "NOT ENOUGH INFO", "id": 7},
]
BIO = {"hard_text": "He wrote one book. He plays", "profession": PROFESSIONS.index("poet"), "gender": 0}
EPISTEMIC = {
    "name": "epistemic_reasoning",
    "task_prefix": "Choose.\n",
    "example_input_prefix": "\n",
    "example_output_prefix": "\nRelation: ",
    "examples": [
        {"input": "Premise: a. Hypothesis: b.", "target_scores": {"entailment": 1, "non-entailment": 0}},
        {"input": "Premise: c. Hypothesis: d.", "target_scores": {"entailment": 0, "non-entailment": 1}},
    ],
}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))
    return path.parent


def copied(folder: Path, name: str, *splits):
    """A folder that looks like the hub's parquet branch of a task's source."""
    source = registry.TASKS[name].source
    for split, rows in zip(source.splits, splits, strict=True):
        path = folder / source.config / split / "0000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(path)
    return folder


def prompts(samples):
    return [sample.prompt for sample in samples]


def answers(samples):
    return [sample.answers[sample.gold] for sample in samples]


def test_a_fact_is_three_samples_of_one_group(tmp_path):
    found = task_samples("counterfact", data_dir=write(tmp_path / "counterfact.json", [FACT, FACT]))
    assert prompts(found[:3]) == ["The mother tongue of D {1} is", "Noise. D spoke", "D's own words are"]
    assert set(answers(found)) == {"French"}
    assert {(sample.match, sample.window) for sample in found} == {("text", 0)}
    assert list(Counter(sample.group for sample in found).values()) == [3, 3]
    masked = task_samples("counterfact", data_dir=tmp_path, masked=True)
    assert masked[1].prompt == f"Noise. D spoke {MASK}."


def test_the_hubs_cut_of_counterfact_comes_in_its_first_order(tmp_path):
    train, test = (
        [FACT | {"case_id": i, "paraphrase_prompts": [str(i), "x"]} for i in ids] for ids in ([0, 3], [1, 2])
    )
    found = task_samples("counterfact", data_dir=copied(tmp_path, "counterfact", train, test))
    assert prompts(found[1::3]) == ["0", "1", "2", "3"]


def test_known_facts_serve_where_there_is_no_counterfact(tmp_path):
    row = {"prompt": "V is located in the continent of", "attribute": "Antarctica", "subject": "V"}
    folder = write(tmp_path / "known_1000.json", [row])
    assert task_samples("counterfact", data_dir=folder) == [
        Sample(row["prompt"], "Antarctica", group="fact 0", match="text")
    ]


def test_hotpotqa_takes_as_many_training_rows_as_validation_has(tmp_path, tokenizer):
    train = [{"question": f"Q{i}", "answer": "a"} for i in range(9)]
    validation = [
        {"question": "Who? ", "answer": " " + "a " * 14},
        {"question": "Name him.", "answer": "a " * 15},
        {"question": "V", "answer": "b"},
    ]
    write(tmp_path / "hotpot_train_v1.1.json", train)
    folder = write(tmp_path / "hotpot_dev_fullwiki_v1.json", validation)
    found = task_samples("hotpotqa", data_dir=folder)
    expected = ["Q0? The answer is", "Q1? The answer is", "Q2? The answer is", "Who? The answer is", "V? The answer is"]
    assert prompts(found) == expected
    assert {(sample.match, sample.window) for sample in found} == {("contains", 15)}
    laser = task_samples("hotpotqa", data_dir=folder, protocol="laser")
    assert {(sample.match, sample.window) for sample in laser} == {("contains-with-prompt", 15)}
    for protocol in registry.PROTOCOLS:
        masked = task_samples("hotpotqa", data_dir=folder, protocol=protocol, masked=True)
        assert {(sample.match, sample.window) for sample in masked} == {("contains", 5)}
    assert prompts(task_samples("hotpotqa", data_dir=folder, tokenizer=tokenizer)) == expected


def test_hotpotqa_counts_with_the_models_tokenizer(tmp_path, tokenizer):
    rows = [{"question": "Q", "answer": "a-b-c-d-e-f-g-h-i-j-k-l-m-n-o-p"}]
    folder = copied(tmp_path, "hotpotqa", rows, rows)
    assert len(task_samples("hotpotqa", data_dir=folder, tokenizer=tokenizer)) == 2  # one token, unknown

    class ByLetter:
        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": list(map(ord, text))}

    with pytest.raises(LasertriError, match="got none of 2 rows"):
        task_samples("hotpotqa", data_dir=folder, tokenizer=ByLetter())


def test_fever_has_every_claim_once_and_none_that_a_split_labels_both_ways(tmp_path):
    write(tmp_path / "paper_dev.jsonl", CLAIMS)
    folder = write(tmp_path / "paper_test.jsonl", [{"claim": "Is it so?", "label": "SUPPORTS"}, CLAIMS[3]])
    found = task_samples("fever", data_dir=folder)
    assert prompts(found) == [
        f"Consider the following claim: {claim} Is this claim true or false. The claim is"
        for claim in ("Ice is cold.", "Fire is cold.", "Is it so?", "Both ways.")
    ]
    assert answers(found) == ["true", "false", "true", "false"]
    assert [sample.source for sample in found][1] == f"{tmp_path / 'paper_dev.jsonl'}:2"
    assert task_samples("fever", data_dir=folder, masked=True) == found  # its answer is at the end
    rows = [{"claim": row["claim"], "label": int(row["label"] == "SUPPORTS")} for row in CLAIMS[:5]]
    hub = task_samples("fever", data_dir=copied(tmp_path / "hub", "fever", rows, [{"claim": "Is it so?", "label": 1}]))
    assert hub == found[:3]


def test_biographies(tmp_path):
    others = [BIO | {"profession": PROFESSIONS.index(name), "gender": 1} for name in ("surgeon", "teacher")]
    folder = copied(tmp_path, "bios-gender", [BIO, *others])
    gender = task_samples("bios-gender", data_dir=folder)
    assert gender[0].prompt == (
        "Consider the following text: He wrote one book. He plays. Is the person in this text a male or female? "
        "The gender of this person is"
    )
    assert answers(gender) == ["male", "female", "female"]
    profession = task_samples("bios-profession", data_dir=folder)
    assert answers(profession) == ["poet", "teacher"]
    assert {sample.choices for sample in profession} == {ONE_TOKEN}
    assert profession[0].prompt.endswith("this text? The profession of this person is")
    named_rows = [{"hard_text": "x", "profession": "painter", "gender": "female"}]
    named_folder = write(tmp_path / "named" / "dev.jsonl", named_rows)
    assert answers(task_samples("bios-profession", data_dir=named_folder)) == ["painter"]
    assert len(PROFESSIONS) == 28
    assert list(PROFESSIONS) == sorted(PROFESSIONS)


def test_a_masked_model_sees_the_last_50_tokens_of_a_biography(tmp_path, tokenizer):
    words = [chr(ord("a") + i % 26) for i in range(60)]
    folder = write(tmp_path / "dev.jsonl", [BIO | {"hard_text": " ".join(words)}])
    seen = " ".join(words[-50:])
    for counted in (None, tokenizer):
        [gender] = task_samples("bios-gender", data_dir=folder, masked=True, tokenizer=counted)
        assert gender.prompt == (
            f"Consider the following text: {seen}. Is the person in this text a male or female? This person is {MASK}."
        )
    [profession] = task_samples("bios-profession", data_dir=folder, masked=True)
    assert profession.prompt == (
        f"Consider the following text: {seen}. The profession of the person in the text is called {MASK}."
    )
    assert task_samples("bios-gender", data_dir=folder)[0].prompt.count(" a b ") == 3


TARGETS = {"You grow melons": 0, "Nothing happens.": 1, "Why not?": 0}


def truthful(folder):
    return write(folder / "mc_task.json", [{"question": "What if?", "mc2_targets": TARGETS}])


def test_truthfulqa_asks_about_one_answer_at_a_time(tmp_path):
    found = task_samples("truthfulqa", data_dir=truthful(tmp_path))
    assert prompts(found) == [
        f"What if? {statement} Is this statement true or false? This statement is"
        for statement in ("You grow melons.", "Nothing happens.", "Why not?.")
    ]
    assert answers(found) == ["false", "true", "false"]
    assert {sample.group for sample in found} == {"question What if?"}
    laser = task_samples("truthfulqa", data_dir=tmp_path, protocol="laser")
    assert prompts(laser) == [prompt.replace(" Is", "Is") for prompt in prompts(found)]


def test_the_editions_of_truthfulqa_agree(tmp_path):
    found = task_samples("truthfulqa", data_dir=truthful(tmp_path / "json"))
    lists = {"choices": list(TARGETS), "labels": list(TARGETS.values())}
    folder = copied(tmp_path / "hub", "truthfulqa", [{"question": "What if?", "mc2_targets": lists}])
    assert task_samples("truthfulqa", data_dir=folder) == found
    (tmp_path / "TruthfulQA.csv").write_text(
        "\ufeffQuestion,Correct Answers,Incorrect Answers\n"
        'What if?,"Nothing happens.; Unknown;","You grow melons; Unknown; Why not?;You grow melons"\n'
    )
    assert task_samples("truthfulqa", data_dir=tmp_path) == [found[1], found[0], found[2]]


def test_epistemic_reasoning_from_its_own_file_and_from_the_hub(tmp_path):
    found = task_samples("epistemic-reasoning", data_dir=write(tmp_path / "task.json", EPISTEMIC))
    assert prompts(found) == [f"Choose.\n\n{e['input']}\nRelation:" for e in EPISTEMIC["examples"]]
    assert answers(found) == ["entailment", "non-entailment"]
    assert {sample.choices for sample in found} == {("entailment", "non-entailment")}
    train, validation = ([{"inputs": s.prompt, "targets": answers([s])}] for s in found)
    folder = copied(tmp_path / "hub", "epistemic-reasoning", validation, train)
    assert task_samples("epistemic-reasoning", data_dir=folder) == found[::-1]


def test_wikidata_takes_the_examples_with_one_answer(tmp_path):
    examples = [{"input": "A is in", "target": ["B"]}, {"input": "C is in", "target": ["D", "E"]}]
    document = {"name": "qa_wikidata", "example_input_prefix": "", "example_output_prefix": "", "examples": examples}
    folder = write(tmp_path / "qa_wikidata" / "task.json", document).parent
    assert task_samples("qa-wikidata", data_dir=folder) == [Sample("A is in", "B", match="contains", window=10)]
    [laser] = task_samples("qa-wikidata", data_dir=folder, protocol="laser")
    assert (laser.match, laser.window) == ("contains-with-prompt", 10)
    [masked] = task_samples("qa-wikidata", data_dir=folder, protocol="laser", masked=True)
    assert (masked.match, masked.window) == ("contains", 5)
    document |= {"examples": [{"input": "A is", "target": "B"}]}
    del document["example_input_prefix"], document["example_output_prefix"]
    write(folder / "qa_wikidata" / "task.json", document)
    assert prompts(task_samples("qa-wikidata", data_dir=folder)) == ["Q: A is\nA:"]  # BIG-bench's own prefixes


def test_a_copy_that_was_written_over_is_read_again_whatever_its_time(tmp_path):
    for claim in ("Is it?", "So it is."):
        rows = [{"claim": claim, "label": "SUPPORTS", "more": {"a": [1]}}]
        copied(tmp_path, "fever", rows, rows)
        for path in tmp_path.rglob("*.parquet"):
            os.utime(path, (1e9, 1e9))
        assert claim in prompts(task_samples("fever", data_dir=tmp_path))[0]


def test_without_a_folder_the_hubs_parquet_branch_is_read(tmp_path, monkeypatch):
    copied(tmp_path, "truthfulqa", [{"question": "Q?", "mc2_targets": {"choices": ["A"], "labels": [1]}, "more": 1}])
    task = registry.TASKS["truthfulqa"]
    local = dataclasses.replace(task, source=dataclasses.replace(task.source, repository=str(tmp_path)))
    asked = []
    load = datasets.load_dataset
    monkeypatch.setitem(registry.TASKS, "truthfulqa", local)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **options: asked.append(options) or load(*args, **options)
    )
    assert answers(task_samples("truthfulqa")) == ["true"]
    assert asked == [
        {
            "data_files": {"validation": "multiple_choice/validation/*.parquet"},
            "split": "validation",
            "revision": REVISION,
        }
    ]


def test_without_a_network_it_is_said_which_files_to_bring(monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach 'EleutherAI/fever' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(LasertriError, match="EleutherAI/fever.*paper_dev.jsonl and paper_test.jsonl.*fever.ai"):
        task_samples("fever")


@pytest.mark.parametrize("name", registry.TASKS)
def test_missing_files_are_named_with_where_to_get_them(tmp_path, name):
    source = registry.TASKS[name].source
    with pytest.raises(LasertriError) as caught:
        task_samples(name, data_dir=tmp_path)
    for told in (*source.editions[0], source.url, str(tmp_path), f"{source.config}/{source.splits[0]}"):
        assert told in str(caught.value)
    with pytest.raises(LasertriError, match="expected a folder"):
        task_samples(name, data_dir=tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("counterfact", "counterfact.json", [{"base_prompt": "a"}], "row 1: expected a field 'requested_rewrite'"),
        (
            "counterfact",
            "counterfact.json",
            [FACT | {"paraphrase_prompts": "x"}],
            "paraphrase_prompts: expected a list",
        ),
        (
            "counterfact",
            "counterfact.json",
            [FACT, FACT | {"requested_rewrite": FACT["requested_rewrite"] | {"prompt": "no place"}}],
            "row 2: expected a prompt with one {}",
        ),
        ("truthfulqa", "mc_task.json", [{"question": "a", "mc2_targets": {"b": 2}}], "row 1, mc2_targets"),
        ("truthfulqa", "mc_task.json", [{"mc2_targets": {"b": 1}}], "row 1: expected a field 'question'"),
        ("truthfulqa", "mc_task.json", {"a": 1}, "expected a list of rows"),
        ("truthfulqa", "mc_task.json", ["a"], "row 1: expected an object with fields, got 'a'"),
        ("bios-gender", "dev.jsonl", [BIO | {"gender": 2}], "dev.jsonl:1, gender: expected one of"),
        ("bios-gender", "dev.jsonl", [BIO | {"gender": True}], "dev.jsonl:1, gender.*got True"),
        ("bios-profession", "dev.jsonl", [BIO, BIO | {"profession": "dj?"}], "dev.jsonl:2, profession.*got 'dj"),
        ("bios-gender", "dev.jsonl", [BIO | {"hard_text": " "}], "dev.jsonl:1, hard_text: expected text"),
        ("qa-wikidata", "task.json", EPISTEMIC, "row 1: expected the task qa_wikidata, got 'epistemic_reasoning'"),
        ("qa-wikidata", "task.json", {"examples": [{"input": "a"}]}, "row 1: expected a target with texts, got None"),
        ("epistemic-reasoning", "task.json", {"examples": [{"input": "a", "target": "b"}]}, "row 1: expected one of"),
        ("epistemic-reasoning", "task.json", {"examples": []}, "expected samples, got none of 0 rows"),
    ],
)
def test_rows_of_another_form_are_named(tmp_path, name, file, content, message):
    with pytest.raises(LasertriError, match=message):
        task_samples(name, data_dir=write(tmp_path / file, content))


def test_files_that_are_no_json_or_parquet(tmp_path):
    (tmp_path / "mc_task.json").write_text('[{"question":\n 1,]')
    with pytest.raises(LasertriError, match="mc_task.json:2: expected JSON"):
        task_samples("truthfulqa", data_dir=tmp_path)
    folder = copied(tmp_path / "hub", "bios-gender", [BIO])
    (folder / "default" / "dev" / "0000.parquet").write_text("none")
    with pytest.raises(LasertriError, match="default/dev/.*expected a parquet file"):
        task_samples("bios-gender", data_dir=folder)
    copied(folder, "bios-gender", [{"hard_text": "a"}])
    with pytest.raises(LasertriError, match=r"expected fields \['gender', 'profession'\]"):
        task_samples("bios-gender", data_dir=folder)


def test_unknown_names_and_protocols_are_refused():
    with pytest.raises(LasertriError, match="expected a task among .*'fever'.*got 'glue'"):
        task_samples("glue")
    with pytest.raises(LasertriError, match="expected a protocol among"):
        task_samples("fever", protocol="paper")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_task_is_evaluated_and_adapted_to_by_name(tmp_path):
    data, folder, tokenizer = truthful(tmp_path), tmp_path / "model", byte_level()
    make_model("gptj", vocab_size=len(tokenizer), n_positions=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    result = run("eval", folder, "--task", "truthfulqa", "--data-dir", data, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n"] == 3
    assert "truthfulqa: 3 samples (5,882 in the papers), majority 66.7%: 'false' 2, 'true' 1\n" in result.stderr
    limited = run("eval", folder, "--task", "truthfulqa", "--data-dir", data, "--limit", 2, "--json")
    assert json.loads(limited.stdout)["n"] == 2
    rows = [{"question": f"Is {i} {'a ' * (i % 3)}even?", "mc2_targets": {"Yes": 1, "No": 0}} for i in range(40)]
    write(tmp_path / "mc_task.json", rows)
    options = ["--protocol", "laser", "--blocks", 1, "--ratios", 0.5, "-q", 1, "--json"]
    result = run("adapt", folder, "--task", "truthfulqa", "--data-dir", data, *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["calibration"]["baseline"]["n"] == 40


@pytest.mark.parametrize("command", ["adapt", "eval"])
def test_data_or_a_task_and_only_what_goes_with_it(tmp_path, folder, command):
    for arguments in (
        [],
        ["--data", tmp_path / "x.jsonl", "--task", "fever"],
        ["--data", tmp_path / "x.jsonl", "--data-dir", tmp_path],
        ["--data", tmp_path / "x.jsonl", "--protocol", "laser"],
        ["--data", tmp_path / "x.jsonl", "--include-path", tmp_path],
        ["--task", "fever", "--include-path", tmp_path],
        ["--task", "fever", "--prompt", "{claim}"],
    ):
        assert run(command, folder, *arguments).exit_code == 2, arguments
    unknown = run(command, folder, "--task", "glue")
    assert unknown.exit_code == 2
    assert "expected a task among" in " ".join(unknown.stderr.split())


def test_ls_lists_what_has_a_name():
    listed = json.loads(run("ls", "--json").stdout)
    assert list(listed) == ["tasks", "architectures", "strategies", "backends"]
    assert listed["tasks"]["fever"] == "13,086 samples of EleutherAI/fever, v1.0"
    text = run("ls").stdout
    for names in listed.values():
        assert all(f"  {name} " in text for name in names)


@pytest.mark.parametrize(
    ("name", "pattern", "labels"),
    [
        ("epistemic-reasoning", "*epistemic_reasoning", {"entailment": 741, "non-entailment": 1259}),
        ("truthfulqa", "truthfulqa", None),
    ],
)
def test_real_files_give_the_published_counts(name, pattern, labels):
    found = sorted(Path(os.environ.get("LASERTRI_DATA", "/nowhere")).glob(pattern))
    if not found:
        pytest.skip("LASERTRI_DATA names no folder with these files")
    samples = task_samples(name, data_dir=found[0])
    if labels is not None:
        assert Counter(answers(samples)) == labels
    else:
        assert len(samples) in (5_882, 6_045, 6_202, 6_021)  # the editions, see tasks/truthfulqa.py


def test_a_task_is_divided_and_takes_no_other_held_out_samples(tmp_path, folder):
    refused = run("adapt", folder, "--task", "fever", "--held-out", tmp_path / "x.jsonl")
    assert refused.exit_code == 2
    assert "--held-out goes with --data" in " ".join(refused.output.split())
