"""lm-evaluation-harness both ways: its tasks as samples, by token and by score, and LASER's tasks for it."""

import json
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from marks import slow
from tiny import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lasertri import LasertriError, Sample, adapt
from lasertri.cli import app
from lasertri.data.lm_eval import LASER_TASKS, lm_eval_samples
from lasertri.data.papers.bigbench import GENERATED
from lasertri.data.papers.hotpotqa import LONGEST
from lasertri.data.papers.registry import TASKS
from lasertri.data.papers.source import REVISION
from lasertri.data.sample import group_names
from lasertri.data.split import split_samples
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed; pip install 'lasertri[lm-eval]'")
pytest.importorskip(
    "accelerate", reason="lm_eval's Hugging Face models need accelerate; pip install 'lasertri[lm-eval]'"
)
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


@pytest.fixture(autouse=True)
def no_dataset_cache(monkeypatch, tmp_path):
    """Tests leave the user's cache of data sets alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CORPUS = [
    "Q: is a b c d yes or no\nA: yes",
    "all hello well no o lo ll  l",
    "the cat sat. <|user|>",
    "naïve größe 日本語",
]
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]


def make_tokenizer(kind):
    """A tokenizer of each common make; "merging" merges letters of prompt and answer."""
    if kind == "merging":
        vocabulary = [*SPECIAL, *sorted(set("".join(CORPUS))), "ll", "lo", ": ", "\nA"]
        merges = [("l", "l"), (":", " "), ("l", "o"), ("\n", "A")]
        tokens = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges, unk_token="<s>"))
        tokens.add_special_tokens(SPECIAL)
    else:
        tokens, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
        if kind == "metaspace":
            tokens.pre_tokenizer, tokens.decoder = (
                pre_tokenizers.Metaspace(prepend_scheme="first"),
                decoders.Metaspace(),
            )
            alphabet = sorted(set("".join(CORPUS)) - {" "})
        else:
            tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokens.decoder = decoders.ByteLevel()
        tokens.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
        )
    if kind != "byte level":
        tokens.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


KINDS = (slow("merging"), slow("byte level"), "byte level with BOS", "metaspace")


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A tokenizer and lm_eval's model with it."""
    tokenizer = make_tokenizer(request.param)
    model = make_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    return tokenizer, model, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)


def rows(path, docs):
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    return path


def task(path, **changes):
    """A task's configuration over a local file."""
    return {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{gold}}",
    } | changes


LETTERS = "abcdefgh"


@pytest.fixture
def choice_docs(tmp_path):
    """Docs whose choices differ in number, in length and in tokens."""
    docs = [
        {
            "q": " ".join(LETTERS[(5 * i + 3 * j) % 8] for j in range(2 + i % 3)),
            "options": ["yes", "no", "hello all", "o"][: 2 + i % 3],
            "gold": i % (2 + i % 3),
            "fact": f"f{i // 3}",
        }
        for i in range(48)
    ]
    return rows(tmp_path / "docs.jsonl", docs)


TEXT = st.text(alphabet="helo \n\t.日ï:", min_size=1, max_size=12)


@given(context=TEXT.filter(str.strip), delimiter=st.sampled_from(["", " ", "\n", ": "]), answer=TEXT.filter(str.strip))
@example(context="\t:", delimiter="", answer=":")  # its first token is unknown, and has BOS's id here
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("start", ["", "<s>"])
def test_tokens_are_divided_as_lm_eval_divides_them(pair, start, context, delimiter, answer):
    tokenizer, model, theirs = pair
    context = start + context
    before, continuation = theirs._encode_pair(context, delimiter + answer)
    sample = Sample(context, answer, delimiter=delimiter, as_lm_eval=True)
    if not before or not continuation:
        with pytest.raises(LasertriError, match="expected tokens for prompt and answer"):
            EncodedSamples([sample], model=model, tokenizer=tokenizer)
        return
    [[ours]] = EncodedSamples([sample], model=model, tokenizer=tokenizer).answers
    assert list(ours.tokens) == continuation
    assert list(ours.row) == (before + continuation)[:-1]


def theirs_on(model, configuration, **options):
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[configuration],
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
        **options,
    )


@pytest.mark.parametrize(("chat", "shots"), [slow(False, 0), slow(False, 2), (True, 2)])
def test_scores_agree_choice_by_choice(pair, choice_docs, tmp_path, chat, shots):
    tokenizer, model, harness = pair
    shown = rows(tmp_path / "shots.jsonl", [{"q": f"{c} all", "options": ["yes", "no"], "gold": 1} for c in "abc"])
    configuration = task(
        choice_docs,
        description="all hello\n",
        num_fewshot=shots,
        fewshot_split="train",
        training_split="train",
        dataset_kwargs={"data_files": {"test": str(choice_docs), "train": str(shown)}},
        metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    )
    expected = theirs_on(harness, configuration, apply_chat_template=chat)
    samples = lm_eval_samples(configuration, chat=tokenizer if chat else None)
    encoded = EncodedSamples(samples, model=model, tokenizer=tokenizer)
    readings = encoded.readings()
    with torch.no_grad():
        for batch in encoded.batches():
            readings.record(batch, *batch.read(model))
    ours = np.add.reduceat(readings.log_probs, encoded.table.first_token)
    docs = sorted(expected["samples"]["local"], key=lambda doc: doc["doc_id"])
    np.testing.assert_allclose(ours, [r[0] for doc in docs for r in doc["filtered_resps"]], rtol=1e-4, atol=1e-4)
    for metric, normalize in (("acc", False), ("acc_norm", True)):
        measured = evaluate(model, encoded, normalize=normalize)
        assert measured.correct.tolist() == [bool(doc[metric]) for doc in docs]
        assert measured.accuracy == pytest.approx(expected["results"]["local"][f"{metric},none"])
    assert 0 < evaluate(model, encoded).accuracy < 1


def test_a_loglikelihood_task_agrees(pair, choice_docs):
    tokenizer, model, harness = pair
    configuration = task(
        choice_docs, output_type="loglikelihood", doc_to_choice=None, doc_to_target=" {{options[gold]}}"
    )
    docs = sorted(theirs_on(harness, configuration)["samples"]["local"], key=lambda doc: doc["doc_id"])
    encoded = EncodedSamples(lm_eval_samples(configuration), model=model, tokenizer=tokenizer)
    measured = evaluate(model, encoded)
    assert measured.log_loss == pytest.approx(-np.mean([doc["filtered_resps"][0][0] for doc in docs]), rel=1e-4)
    assert measured.correct.tolist() == [bool(doc["acc"]) for doc in docs]


def test_a_generation_task_gives_its_target_after_its_delimiter(choice_docs):
    configuration = task(
        choice_docs, output_type="generate_until", doc_to_choice=None, doc_to_target="{{options[gold]}}"
    )
    first = lm_eval_samples(configuration | {"target_delimiter": "\n"})[0]
    assert (first.prompt, first.completion, first.delimiter) == ("Q: a d\nA:", "yes", "\n")


def test_docs_of_a_group_or_of_a_question_stay_together(choice_docs):
    samples = lm_eval_samples(task(choice_docs), group="fact")
    assert [s.group for s in samples[:4]] == ["f0", "f0", "f0", "f1"]
    split = split_samples(samples, calibration=21)
    assert not set(group_names(split.calibration)) & set(group_names(split.held_out))
    assert lm_eval_samples(task(choice_docs))[0].group == "Q: a d\nA:"
    with pytest.raises(LasertriError, match="field 'fatc'"):
        lm_eval_samples(task(choice_docs), group="fatc")


def test_limit_takes_the_first_docs(choice_docs):
    assert lm_eval_samples(task(choice_docs), limit=7) == lm_eval_samples(task(choice_docs))[:7]


def test_a_gold_that_is_always_first_is_no_majority(tmp_path, pair):
    tokenizer, model, _ = pair
    docs = [{"q": f"{c} {d}", "options": [f"{c} {d}", f"{d} {c}"], "gold": 0} for c in LETTERS for d in "ol"]
    samples = lm_eval_samples(task(rows(tmp_path / "mc1.jsonl", docs)))
    measured = evaluate(model, EncodedSamples(samples, model=model, tokenizer=tokenizer))
    assert (measured.majority_rate, measured.balanced_accuracy, measured.collapsed) == (1 / 16, None, False)


def test_labels_may_be_texts(choice_docs):
    by_text = lm_eval_samples(task(choice_docs, doc_to_target="{{options[gold]}}"))
    assert by_text == lm_eval_samples(task(choice_docs))


@pytest.mark.parametrize("gold", [2, -1, "maybe"])
def test_a_label_out_of_range_is_named(tmp_path, gold):
    path = rows(tmp_path / "docs.jsonl", [{"q": "a", "options": ["yes", "no"], "gold": 1 if gold != "maybe" else "yes"},
                                          {"q": "b", "options": ["yes", "no"], "gold": gold}])  # fmt: skip
    with pytest.raises(LasertriError, match="lm_eval task local, doc 1, label: expected an index from 0 to 1"):
        lm_eval_samples(task(path, doc_to_target="gold"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_type": "loglikelihood_rolling", "doc_to_choice": None}, "whole texts"),
        ({"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": " "}, "completion: expected text"),
        (
            {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "options"},
            "one right answer, got 2",
        ),
        ({"doc_to_text": "{{gold}}", "doc_to_target": "{{q}}"}, "multiple_input"),
        ({"process_results": lambda doc, results: {"acc": 1}}, "process_results"),
        ({"num_fewshot": 1}, "from another split than 'test'"),
        ({"num_fewshot": 1, "fewshot_split": "test"}, "from another split than 'test'"),
        ({"doc_to_text": ""}, "prompt: expected text"),
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "cannot be loaded"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(choice_docs, changes, message):
    with pytest.raises(LasertriError, match=message):
        lm_eval_samples(task(choice_docs) | changes)


def test_a_yaml_in_an_include_path_is_found_by_name_and_by_file(choice_docs, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(json.dumps(task(choice_docs, task="mine", tag="ours")))  # JSON is YAML
    expected = lm_eval_samples(task(choice_docs))
    assert lm_eval_samples("mine", include_path=folder) == expected
    assert lm_eval_samples(str(folder / "mine.yaml")) == expected
    with pytest.raises(LasertriError, match="'ours', which names several"):
        lm_eval_samples("ours", include_path=folder)
    with pytest.raises(LasertriError, match="expected a folder of lm_eval tasks"):
        lm_eval_samples("mine", include_path=tmp_path / "none")


def test_its_samples_adapt_a_model(pair, choice_docs):
    tokenizer, model, _ = pair
    samples = lm_eval_samples(task(choice_docs), group="fact")
    result = adapt(model, samples, tokenizer=tokenizer, blocks=2, scoring_blocks=2, ratios=0.5, count=1, progress=False)
    assert (result.calibration.baseline.n, result.held_out.baseline.n) == (24, 24)
    with pytest.raises(LasertriError, match="a sample without a delimiter of its own where chat=True"):
        adapt(model, samples, tokenizer=tokenizer, chat=True)


@pytest.mark.slow  # lm_eval reads the files of all its tasks
def test_an_unknown_task_is_one_sentence():
    with pytest.raises(LasertriError, match="expected the name of an lm_eval task, got 'no_such_task'"):
        lm_eval_samples("no_such_task")


BIO = "She writes poems."
FACT = {
    "case_id": 7,
    "requested_rewrite": {"prompt": "The mother tongue of {} is", "subject": "D", "target_true": {"str": "French"}},
    "paraphrase_prompts": ["D was born. D, a native", "D spoke the language"],
}
CLAIMS = [("A is b", "SUPPORTS"), ("A is b", "SUPPORTS"), ("C is d.", "REFUTES"), ("E", "REFUTES"), ("E", "SUPPORTS"),
          ("F", "NOT ENOUGH INFO"), ("Is g h?", "REFUTES")]  # fmt: skip
STATEMENTS = {"question": "Q?", "mc2_targets": {"choices": ["Yes", "No."], "labels": [1, 0]}}
BIGBENCH = {"inputs": " Premise\nRelation: ", "targets": ["non-entailment"]}
LASER = {  # rows as the hub has them; prompts and right answers as LASER's protocol has them
    "counterfact": ([FACT], [
        ("The mother tongue of D is", " French"),
        ("D was born. D, a native", " French"),
        ("D spoke the language", " French"),
    ]),
    "hotpotqa": ([{"question": "Who is D", "answer": "a poet"}, {"question": "Who is D? ", "answer": "yes"}], [
        ("Who is D? The answer is", "a poet"),
        ("Who is D? The answer is", "yes"),
    ]),
    "fever": ([{"claim": claim, "label": label} for claim, label in CLAIMS], [
        ("Consider the following claim: A is b. Is this claim true or false. The claim is", "true"),
        ("Consider the following claim: C is d. Is this claim true or false. The claim is", "false"),
        ("Consider the following claim: Is g h? Is this claim true or false. The claim is", "false"),
    ]),
    "bios_gender": ([{"hard_text": f" {BIO} ", "profession": 20, "gender": 1}], [
        ("Consider the following text: She writes poems. Is the person in this text a male or female? "
         "The gender of this person is", "female"),
    ]),
    "bios_profession": ([{"hard_text": BIO[:-1], "profession": p, "gender": 1} for p in (20, 0, 21)], [
        ("Consider the following text: She writes poems. What is the profession of the person in this text? "
         "The profession of this person is", "poet"),
        ("Consider the following text: She writes poems. What is the profession of the person in this text? "
         "The profession of this person is", "professor"),
    ]),
    "truthfulqa": ([STATEMENTS], [
        ("Q? Yes.Is this statement true or false? This statement is", "true"),
        ("Q? No.Is this statement true or false? This statement is", "false"),
    ]),
    "epistemic_reasoning": ([BIGBENCH], [("Premise\nRelation:", "non-entailment")]),
    "qa_wikidata": ([{"inputs": " The capital is ", "targets": ["Rome"]}, {"inputs": "a", "targets": ["b", "c"]}], [
        ("The capital is", "Rome"),
    ]),
}  # fmt: skip


def laser_task(name, path):
    """A task of ours with a local file in the place of the hub's, as a YAML that includes it."""
    local = path.with_name("local.yaml")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
    local.write_text(json.dumps({"include": str(LASER_TASKS / f"lasertri_{name}.yaml"), "task": "local"} | data))
    return str(local)


def test_the_folder_holds_the_eight_tasks_and_no_other():
    index = TaskManager(include_path=str(LASER_TASKS), include_defaults=False).task_index
    assert {name for name in index if name != "lasertri"} == {f"lasertri_{name}" for name in LASER}


@pytest.mark.parametrize("name", LASER)
def test_laser_prompts_are_its_own(tmp_path, name):
    docs, expected = LASER[name]
    path = laser_task(name, rows(tmp_path / "docs.jsonl", docs))
    [loaded] = TaskManager(include_defaults=False).load([path])["tasks"].values()
    found = []
    for doc in loaded.eval_docs:
        target = loaded.doc_to_target(doc)
        found.append(
            (loaded.doc_to_text(doc), loaded.doc_to_choice(doc)[target] if isinstance(target, int) else target)
        )
    assert found == expected
    samples = lm_eval_samples(path)
    assert [(sample.prompt, sample.answers[sample.gold]) for sample in samples] == expected
    assert {sample.delimiter for sample in samples} == {"" if name == "counterfact" else " "}


@pytest.mark.parametrize(("name", "group"), [("counterfact", "fact 0"), ("truthfulqa", "question Q?")])
def test_what_comes_from_one_row_is_one_group(tmp_path, name, group):
    samples = lm_eval_samples(laser_task(name, rows(tmp_path / "docs.jsonl", LASER[name][0])))
    assert {sample.group for sample in samples} == {group}


@pytest.mark.parametrize(
    ("name", "metric"), [slow("fever", "acc"), ("counterfact", "acc"), ("qa_wikidata", "contains")]
)
def test_lm_eval_measures_them(tmp_path, pair, name, metric):
    path = laser_task(name, rows(tmp_path / "docs.jsonl", LASER[name][0]))
    results = lm_eval.simple_evaluate(
        model=pair[2], tasks=[path], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
    )["results"]["local"]
    tokenizer, model, _ = pair
    samples = lm_eval_samples(path)
    if metric == "contains":  # lasertri's rule on the same questions
        samples = [replace(sample, match="contains", window=10) for sample in samples]
    expected = evaluate(model, EncodedSamples(samples, model=model, tokenizer=tokenizer)).accuracy
    assert results[f"{metric},none"] == pytest.approx(expected)


def test_the_command_measures_a_model_on_a_task_by_name(pair, choice_docs, tmp_path):
    tokenizer, model, _ = pair
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(json.dumps(task(choice_docs, task="mine")))
    options = ["--task", "lm_eval:mine", "--include-path", tmp_path / "tasks", "--json"]
    for extra in ([], ["--chat"]):
        result = CliRunner().invoke(app, [str(a) for a in ("eval", tmp_path / "model", *options, *extra)])
        assert result.exit_code == 0, result.output
        samples = lm_eval_samples(task(choice_docs), chat=tokenizer if extra else None)
        expected = evaluate(model, EncodedSamples(samples, model=model, tokenizer=tokenizer)).to_dict()
        assert json.loads(result.stdout) == pytest.approx(expected, nan_ok=True)
    refused = CliRunner().invoke(app, ["eval", "m", "--task", "fever", "--include-path", str(tmp_path)])
    assert refused.exit_code == 2
    assert "goes with --task lm_eval:NAME" in " ".join(refused.output.split())


@pytest.mark.parametrize("name", LASER)
def test_their_files_are_those_of_our_own_tasks(name):
    source = TASKS[name.replace("_", "-")].source
    splits = [f"hf://datasets/{source.repository}@{REVISION}/{source.config}/{s}/*.parquet" for s in source.splits]
    expected = {"counterfact": [source.url], "hotpotqa": splits[1:]}.get(name, splits)
    text = (LASER_TASKS / f"lasertri_{name}.yaml").read_text()
    assert re.findall(r"\w+://\S+", text) == expected
    windows = {"hotpotqa": LONGEST, "qa_wikidata": GENERATED}
    assert re.findall(r"max_gen_toks: (\d+)", text) == [str(w) for task, w in windows.items() if task == name]


def test_labels_of_claims_may_be_numbers(tmp_path):
    docs = [{"claim": claim, "label": ("REFUTES", "SUPPORTS").index(label)} for claim, label in CLAIMS if claim != "F"]
    samples = lm_eval_samples(laser_task("fever", rows(tmp_path / "docs.jsonl", docs)))
    assert [(sample.prompt, sample.answers[sample.gold]) for sample in samples] == LASER["fever"][1]
