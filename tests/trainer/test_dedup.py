import itertools
import random

import numpy as np
import pytest

from tests.support.pace import CpuMeter
from trainer.data.clean import Cleaned, clean
from trainer.data.conversation import Conversation, Message
from trainer.data.dedup import (
    CROWD,
    PERMUTATIONS,
    RECALL,
    bands,
    conversation_grams,
    drop_near_duplicates,
    jaccard,
    near_duplicates,
)
from trainer.data.formats import RawRow
from trainer.data.grams import grams, word_hashes

WORDS = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]


def row(text: str, *groups: str) -> Conversation:
    return Conversation((Message("user", "Say it."), Message("assistant", text)), "s", groups, where="f:1")


def text(seed: int, changed: int = 0) -> str:
    """100 words drawn by the seed, the last few of them replaced."""
    words = random.Random(seed).choices(WORDS, k=100)
    return " ".join([*words[: 100 - changed], *(f"other{i}" for i in range(changed))])


def kept(rows: list[Conversation], threshold: float = 0.8) -> list[Conversation]:
    cleaned = Cleaned(conversations=list(rows))
    drop_near_duplicates(cleaned, threshold)
    assert cleaned.dropped.total() == len(rows) - len(cleaned.conversations)
    return cleaned.conversations


def test_near_duplicates_go_and_distinct_rows_stay() -> None:
    rows = [row(text(seed)) for seed in range(200)] + [row(text(seed, changed=2)) for seed in range(50)]
    assert len(kept(rows)) == 200


def test_what_is_left_does_not_depend_on_the_order_of_rows() -> None:
    rows = [row(text(seed, changed)) for seed in range(40) for changed in (0, 4, 8, 12, 30)]
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {r.row_id for r in kept(rows)} == {r.row_id for r in kept(shuffled)}


def test_no_dropped_row_is_less_similar_than_the_threshold() -> None:
    rows = [row(text(seed, changed)) for seed in range(30) for changed in range(0, 40, 4)]
    left = kept(rows)
    gone = [r for r in rows if r not in left]
    assert gone and left
    for dropped in gone:
        assert max(jaccard(conversation_grams(dropped), conversation_grams(r)) for r in left) >= 0.8


def test_case_and_punctuation_make_no_difference_but_numbers_do() -> None:
    assert len(kept([row("Hello there, it is 1000 now!"), row("hello there - it is (1000) now")])) == 1
    assert len(kept([row("What is 12 and 30? 42"), row("What is 14 and 30? 44")])) == 2


def test_the_fast_way_for_ascii_finds_the_same_words() -> None:
    text = "It's log2_x(3.5), e-mail\tA1\x1fb\n— 7th"
    assert text.replace("—", "-").isascii() and not text.isascii()
    assert word_hashes(text).tolist() == word_hashes(text.replace("—", "-")).tolist()


SCRIPTS = {
    "Chinese": [chr(i) for i in range(0x4E00, 0x4E00 + 800)],
    "Japanese": [chr(i) for i in [*range(0x3042, 0x3092), *range(0x30A2, 0x30F0), *range(0x6700, 0x6780)]],
    "Thai": [chr(i) for i in range(0x0E01, 0x0E2F)],
    "Lao": [chr(i) for i in range(0x0E94, 0x0EA4)],
    "Khmer": [chr(i) for i in range(0x1780, 0x17A3)],
    "Burmese": [chr(i) for i in range(0x1000, 0x1021)],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_near_duplicates_are_found_in_scripts_without_spaces(script: str) -> None:
    """A clause counted as one word, and a row of four clauses had no 5-gram to share."""
    draw = random.Random(5)
    texts = ["".join(draw.choices(SCRIPTS[script], k=120)) for _ in range(30)]
    changed = [f"{t[:40]}{t[43]}{t[41:43]}{t[40]}{t[44:]}" for t in texts]
    written = ["，".join((t[:30], t[30:60], t[60:90], t[90:])) for t in (*texts, *changed)]
    assert len(kept([row(text) for text in written])) == 30


def test_other_texts_of_few_letters_are_no_near_duplicates() -> None:
    draw = random.Random(6)
    texts = ["".join(draw.choices(SCRIPTS["Lao"], k=400)) for _ in range(100)]
    assert len(kept([row(text) for text in texts])) == 100


def test_words_beside_letters_stay_words() -> None:
    """Digits, Latin and Korean words keep the hash that they have in a text of their own."""
    words = ["python", "12", "\u0e51\u0e52", "naïve", "안녕하세요"]
    mixed = "请用Python写，12个。\u0e51\u0e52 naïve 안녕하세요"
    found = word_hashes(mixed).tolist()
    assert len(found) == len(words) + len("请用写个")
    assert [h for h in found if h in {int(word_hashes(w)[0]) for w in words}] == [
        int(word_hashes(w)[0]) for w in words
    ]


def test_rows_without_words_are_never_near_duplicates() -> None:
    rows = [Conversation((Message("user", a), Message("assistant", b)), "s") for a, b in ("?!", "+-", "!?")]
    assert kept(rows) == rows


def test_the_kept_row_takes_over_the_groups() -> None:
    (left,) = kept([row(text(1), "a"), row(text(1, changed=1), "b")])
    assert set(left.groups) == {"a", "b"}


def test_an_exact_duplicate_hands_its_groups_on_too() -> None:
    raw = {"instruction": "q", "output": "a"}
    cleaned = clean([RawRow("f:1", raw | {"group": "a"}), RawRow("f:2", raw | {"group": "b"})])
    assert cleaned.conversations[0].groups == ("a", "b")


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_a_pair_at_the_threshold_is_almost_surely_proposed(threshold: float) -> None:
    count = bands(threshold)
    assert PERMUTATIONS % count == 0
    assert 1 - (1 - threshold ** (PERMUTATIONS // count)) ** count >= RECALL


def crowd(count: int) -> list[Conversation]:
    """Rows of one template, each with twelve words of its own."""
    template = " ".join(random.Random(1).choices(WORDS, k=60))
    return [row(f"{template} {' '.join(f'own{i}x{j}' for j in range(12))}") for i in range(count)]


def test_a_crowd_of_almost_near_duplicates_costs_seconds_and_is_kept() -> None:
    rows = crowd(3000)
    some = [conversation_grams(r) for r in rows[:200]]
    alike = [jaccard(a, b) for a, b in itertools.combinations(some, 2)]
    assert 0.6 < min(alike) and max(alike) < 0.8, "each looks like all others, and is none of them"
    with CpuMeter() as meter:
        assert not near_duplicates(rows, 0.8)
    print(f"{meter.units:.1f} units")
    assert meter.units < 500


def test_a_copy_is_found_in_a_crowd() -> None:
    rows = crowd(2 * CROWD)
    assert len(kept([*rows, row(text(7)), row(text(7) + " more")])) == len(rows) + 1


def test_grams_are_those_of_sets_of_word_tuples() -> None:
    words = random.Random(3).choices(WORDS[:6], k=300)
    expected = {tuple(words[i : i + 3]) for i in range(298)}
    found = grams(word_hashes(" ".join(words)), 3)
    assert len(found) == len(expected) and bool(np.all(found[:-1] < found[1:]))
    assert len(grams(word_hashes("too short"), 3)) == 0
