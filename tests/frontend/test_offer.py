import pytest

import texts
from client import Model
from conversations import ask, new_chat, reply
from offer import LONGEST_UNKNOWN, Offer, offer_of
from settings import DEFAULT_EXAMPLES, Example, Settings

CARDS = Model(
    "cards", 2048, "", "Turns <docs> into cards.", ("Make a card.\n\nf(x)", "Make a card.\n\ng()", "Hi")
)
NONE = Settings(api_url="http://127.0.0.1:8000")


def test_a_model_is_described_by_the_api_and_its_examples_are_prompts_it_can_answer() -> None:
    offer = offer_of(CARDS, NONE)
    assert offer.intro == "Turns &lt;docs&gt; into cards."
    assert [example.prompt for example in offer.examples] == list(CARDS.examples)
    assert offer.examples[0].title == "Make a card.\nf(x)"


@pytest.mark.parametrize("model", [None, Model("any")], ids=["not known yet", "of any OpenAI server"])
def test_a_model_that_the_api_does_not_describe_gets_general_examples(model: Model | None) -> None:
    offer = offer_of(model, NONE)
    assert (offer.intro, offer.examples) == (texts.INTRO, DEFAULT_EXAMPLES)
    assert (offer.context_tokens, offer.longest_answer) == (None, LONGEST_UNKNOWN)


def test_the_operators_settings_come_before_what_the_api_says() -> None:
    own = (Example(title="Greet", prompt="Say hello."),)
    settings = NONE.model_copy(update={"intro": "Our **own**", "examples": own, "context_tokens": 512})
    offer = offer_of(CARDS, settings)
    assert (offer.intro, offer.examples, offer.context_tokens) == ("Our **own**", own, 2048)
    assert offer_of(Model("any"), settings).longest_answer == 512


def test_examples_lead_through_a_chat_until_the_reader_asks_something_else() -> None:
    offer, chat = offer_of(CARDS, NONE), new_chat()
    for example in offer.examples:
        assert example in offer.to_follow(chat)
        chat["entries"] = reply(ask(chat["entries"], example.prompt), "answer")
        assert example not in offer.to_follow(chat)
    assert offer.to_follow(chat) == []
    assert offer.to_follow(new_chat(ask([], "My own question"))) == []


@pytest.mark.parametrize(
    ("context", "chosen", "sent"),
    [(2048, 512, 512), (2048, 2032, 2032), (2048, 2048, None), (2050, 2048, None), (2048, 4096, None),
     (None, 4096, 4096)],
)  # fmt: skip
def test_at_its_end_the_answer_length_is_what_the_messages_leave(
    context: int | None, chosen: int, sent: int | None
) -> None:
    assert Offer("", (), context).max_tokens(chosen) == sent


def test_the_answer_length_says_what_it_shares_and_from_where_it_was_lowered() -> None:
    assert "context of 2,048 tokens" in texts.answer_length_info(2048)
    assert texts.answer_length_info(2048, lowered_from=4096).startswith("Lowered from 4,096. ")
    assert "does not say" in texts.answer_length_info(None)


def test_a_button_shows_the_first_lines_of_an_example_and_asks_the_whole() -> None:
    long = Example(title=f"Make a card.\n{'word ' * 40}\nmore", prompt="the whole prompt")
    [(label, name)] = texts.example_buttons([long])
    first, second = label.split("\n")
    assert first == "Make a card." and second.endswith("…") and len(second) <= texts.LABEL_WIDTH
    assert name == texts.ASK + "the whole prompt"
