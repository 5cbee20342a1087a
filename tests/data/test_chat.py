"""A prompt as the user's turn of a chat: the tokens are those of a conversation with the model."""

import json

import pytest
from tiny import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lasertri import LasertriError, Sample, adapt
from lasertri.cli import app
from lasertri.data.chat import chat_text
from lasertri.language.samples import EncodedSamples

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@pytest.fixture
def chatty():
    """Word by word; it puts BOS before every text of its own accord, and so does its template."""
    words = [*WORDS[:-3], "user", "assistant", "<s>"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos = words.index("<s>")
    tokens.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", pad_token="<pad>", bos_token="<s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def words(tokenizer, answer):
    return tokenizer.convert_ids_to_tokens(answer.row), tokenizer.convert_ids_to_tokens(answer.tokens)


def test_the_prompt_is_the_users_turn_and_the_answer_the_models(model, chatty):
    [answers] = EncodedSamples(
        [Sample("a b", choices=("yes", "no d"), label=0)], model=model, tokenizer=chatty, chat=True
    ).answers
    turn = ["<s>", "user", "a", "b", "assistant"]
    assert words(chatty, answers[0]) == (turn, ["yes"])
    assert words(chatty, answers[1]) == ([*turn, "no"], ["no", "d"])
    asked = chatty.apply_chat_template([{"role": "user", "content": "a b"}], add_generation_prompt=True)["input_ids"]
    assert list(answers[0].row) == asked


def test_a_template_without_bos_gets_none(model, chatty):
    chatty.chat_template = TEMPLATE.replace("{{ bos_token }} ", "")
    [[answer]] = EncodedSamples([Sample("a", "yes")], model=model, tokenizer=chatty, chat=True).answers
    assert words(chatty, answer) == (["user", "a", "assistant"], ["yes"])


@pytest.mark.parametrize("prompt", ["a", "<s> a"])
def test_without_a_chat_there_is_one_bos(model, chatty, prompt):
    [[answer]] = EncodedSamples([Sample(prompt, "yes")], model=model, tokenizer=chatty).answers
    assert words(chatty, answer) == (["<s>", "a"], ["yes"])


def test_no_delimiter_stands_between_turn_and_answer(model, chatty):
    with_other = {"delimiter": " b ", "chat": True}
    [[answer]] = EncodedSamples([Sample("a", "yes")], model=model, tokenizer=chatty, **with_other).answers
    assert words(chatty, answer)[1] == ["yes"]


def test_a_tokenizer_without_a_template_is_refused_before_the_work_starts(model, tokenizer, samples):
    with pytest.raises(LasertriError, match="expected a tokenizer with a chat template"):
        adapt(model, samples, tokenizer=tokenizer, chat=True)


def test_a_template_that_refuses_a_system_message_goes_without(chatty):
    refuses = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    chatty.chat_template = refuses + TEMPLATE
    system, user = {"role": "system", "content": "c"}, {"role": "user", "content": "a"}
    assert chat_text(chatty, [system, user]) == chat_text(chatty, [user]) == "<s> user a\nassistant\n"
    chatty.chat_template = "{{ raise_exception('nobody') }}"
    with pytest.raises(LasertriError, match="takes a user's message: nobody"):
        chat_text(chatty, [system, user])


IN_PARTS = TEMPLATE.replace(
    "{{ m.content }}", "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        IN_PARTS,
        TEMPLATE.replace("m.content", "m.content[0].text"),
        TEMPLATE.replace("m.content", "m.content[0]['text']"),
        TEMPLATE.replace("m.content", "(m.content | selectattr('type', 'equalto', 'text') | first).text | trim"),
    ],
    ids=range(4),
)
def test_a_template_that_takes_parts_gets_parts(model, chatty, template):
    chatty.chat_template = template
    system, user = {"role": "system", "content": "c"}, {"role": "user", "content": "a b"}
    assert "".join(chat_text(chatty, [system, user]).split()) == "<s>systemcuserabassistant"
    [[answer]] = EncodedSamples([Sample("a b\n", "yes")], model=model, tokenizer=chatty, chat=True).answers
    assert words(chatty, answer)[0][:4] == ["<s>", "user", "a", "b"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role }}\n{% endfor %}", "writes a message as it is, .* find 'Is a b' in what"),
        (TEMPLATE.replace("m.content", "m.content | upper"), "writes a message as it is"),
        (TEMPLATE.replace("m.content", "m.content + 1"), "takes a user's message: "),
        (TEMPLATE.replace("m.content", "1 // 0"), "takes a user's message: .*zero"),
        (TEMPLATE.replace("m.content", "m.content.nothing.there"), "takes a user's message: .*has no attribute"),
        ("{% for m in messages %}{{ m.content }}", "takes a user's message: "),
        ("{{ raise_exception('one\n\ntwo ' * 500) }}", "takes a user's message: one two one two"),
    ],
    ids=range(7),
)
def test_a_template_that_loses_the_prompt_or_fails_is_named_in_a_sentence(model, chatty, template, message):
    chatty.chat_template = template
    with pytest.raises(LasertriError, match=f"row 2: expected a chat template that {message}") as caught:
        EncodedSamples([Sample("Is a b", "yes", source="row 2")], model=model, tokenizer=chatty, chat=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_models_own_turn_may_be_continued(chatty):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert chat_text(chatty, turns, add_generation_prompt=False) == "<s> user a\nassistant b"


def test_the_command_line_asks_in_a_chat(folder, chatty, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "choices": ["yes", "no"], "label": 0}) + "\n" for p in "ab"))

    def measured(*options):
        return CliRunner().invoke(app, ["eval", str(folder), "--data", str(path), *options, "--json"])

    assert "expected a tokenizer with a chat template" in measured("--chat").stderr
    chatty.save_pretrained(folder)
    plain, chat = (json.loads(measured(*options).stdout)["log_loss"] for options in ([], ["--chat"]))
    assert plain != chat
