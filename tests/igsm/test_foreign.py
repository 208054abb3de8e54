"""Problems of another generator in the paper's format: names we do not know, modulus 23, worked out by hand."""

import pytest

from peft_study.igsm.parse import parse_problem
from peft_study.igsm.verify import Judgement, Verdict, Verifier, judge

MODULUS = 23

SCHOOL = (
    "The number of each Riverview High's Film Studio equals 5 times as much as the sum of each Film Studio's Backpack"
    " and each Dance Studio's School Daypack. The number of each Film Studio's School Daypack equals 12 more than the"
    " sum of each Film Studio's Messenger Backpack and each Central High's Film Studio. The number of each Central"
    " High's Film Studio equals the sum of each Dance Studio's School Daypack and each Film Studio's Messenger"
    " Backpack. The number of each Riverview High's Dance Studio equals the sum of each Film Studio's Backpack, each"
    " Film Studio's Messenger Backpack, each Film Studio's School Daypack and each Central High's Backpack. The number"
    " of each Dance Studio's School Daypack equals 17. The number of each Film Studio's Messenger Backpack equals 13."
    " How many Backpack does Central High have?"
)
"""The example of Part 2.1, section 2."""

SCHOOL_SOLUTION = (
    "Define Dance Studio's School Daypack as p; so p = 17. Define Film Studio's Messenger Backpack as W; so W = 13."
    " Define Central High's Film Studio as B; so B = p + W = 17 + 13 = 7. Define Film Studio's School Daypack as g;"
    " R = W + B = 13 + 7 = 20; so g = 12 + R = 12 + 20 = 9. Define Film Studio's Backpack as w; so w = g + W = 9 + 13"
    " = 22. Define Central High's Backpack as c; so c = B * w = 7 * 22 = 16."
)

# Mayfair Gate holds 4 Truvian Markets and 6 Ocean Baskets. A Truvian Market holds 9 + (4 - 6) = 7 Blueberry Patches;
# an Ocean Basket 3 * 7 = 21 of them and 6 Rye Breads, that is 27 = 4 products; so Mayfair Gate holds
# 4 * 7 + 6 * 4 = 28 + 24 = 5 + 1 = 6 products (all modulo 23).
MARKET = (
    "The number of each Ocean Basket's Blueberry Patch equals 3 times as much as each Truvian Market's Blueberry"
    " Patch. The number of each Mayfair Gate's Ocean Basket equals 6. The number of each Truvian Market's Blueberry"
    " Patch equals 9 more than the difference of each Mayfair Gate's Truvian Market and each Mayfair Gate's Ocean"
    " Basket. The number of each Ocean Basket's Rye Bread equals each Mayfair Gate's Ocean Basket. The number of each"
    " Mayfair Gate's Truvian Market equals 4. The number of each Canal Row's Ocean Basket equals 2 times as much as"
    " each Ocean Basket's Rye Bread. How many Product does Mayfair Gate have?"
)

STEPS: tuple[str, ...] = (
    "Define Mayfair Gate's Truvian Market as k; so k = 4.",
    " Define Mayfair Gate's Ocean Basket as d; so d = 6.",
    " Define Truvian Market's Blueberry Patch as F; z = k - d = 4 - 6 = 21; so F = 9 + z = 9 + 21 = 7.",
    " Define Ocean Basket's Blueberry Patch as n; so n = 3 * F = 3 * 7 = 21.",
    " Define Ocean Basket's Rye Bread as Q; so Q = d = 6.",
    " Define Truvian Market's Product as e; so e = F = 7.",
    " Define Ocean Basket's Product as v; so v = n + Q = 21 + 6 = 4.",
    " Define Mayfair Gate's Product as u; s = k * e = 4 * 7 = 5; H = d * v = 6 * 4 = 1; so u = s + H = 5 + 1 = 6.",
)


def judge_market(*steps: str, answer: str = "6", rule: str = "strict") -> Judgement:
    return judge(MARKET, "".join(steps), answer, MODULUS, rule=rule)


@pytest.mark.parametrize("rule", ["strict", "published"])
def test_the_examples_are_right(rule: str) -> None:
    assert judge(SCHOOL, SCHOOL_SOLUTION, " 16", MODULUS, rule=rule) == Judgement((Verdict.RIGHT,) * 6, "", 0, 0)
    assert judge_market(*STEPS, rule=rule) == Judgement((Verdict.RIGHT,) * 8, "", 0, 0)


def test_question_before_problem_is_the_same_problem() -> None:
    statement, _, question = MARKET.rpartition(" How")
    assert parse_problem(f" How{question} {statement}") == parse_problem(MARKET)


def test_the_parser_reads_the_names() -> None:
    parsed = parse_problem(MARKET)
    assert parsed.query == ("Mayfair Gate", "Product")
    formula = parsed.formulas["Truvian Market", "Blueberry Patch"]
    assert (formula.constant, formula.constant_op, formula.operation) == (9, "+", "-")
    assert formula.operands == (("Mayfair Gate", "Truvian Market"), ("Mayfair Gate", "Ocean Basket"))


@pytest.mark.parametrize("back", ["[BACK]", "BACK"])
def test_retractions_in_either_spelling_are_counted_and_skipped(back: str) -> None:
    judgement = judge_market(*STEPS[:3], f" Define Ocean Basket's Product as {back}.", *STEPS[3:])
    assert judgement.ok
    assert judgement.retries == 1
    assert judgement.steps[3] == Verdict.RETRACTED


def test_an_unnecessary_step_is_not_wrong() -> None:
    more = " Define Canal Row's Ocean Basket as J; so J = 2 * Q = 2 * 6 = 12."
    judgement = judge_market(*STEPS[:5], more, *STEPS[5:])
    assert judgement.ok
    assert judgement.unnecessary == 1


@pytest.mark.parametrize(
    ("step", "old", "new"),
    [
        (2, "so F = 9 + z = 9 + 21 = 7", "so F = z + 9 = 21 + 9 = 7"),
        (3, "n = 3 * F = 3 * 7 = 21", "n = F * 3 = 7 * 3 = 21"),
        (6, "v = n + Q = 21 + 6 = 4", "v = Q + n = 6 + 21 = 4"),
        (7, "s = k * e = 4 * 7 = 5; H = d * v = 6 * 4 = 1", "H = v * d = 4 * 6 = 1; s = k * e = 4 * 7 = 5"),
    ],
)
def test_sums_and_products_may_be_turned(step: int, old: str, new: str) -> None:
    steps = list(STEPS)
    assert old in steps[step]
    steps[step] = steps[step].replace(old, new)
    assert judge_market(*steps).ok


@pytest.mark.parametrize(
    ("step", "old", "new", "verdict"),
    [
        (2, "z = k - d = 4 - 6 = 21; so F = 9 + z = 9 + 21 = 7", "z = d - k = 6 - 4 = 2; so F = 9 + z = 9 + 2 = 11",
         Verdict.LOOKUP),
        (2, "k - d = 4 - 6 = 21", "k - d = 4 - 6 = 20", Verdict.ARITHMETIC),
        (2, "k - d = 4 - 6 = 21", "k - d = 4 - 5 = 22", Verdict.LOOKUP),
        (2, "9 + z = 9 + 21 = 7", "8 + z = 8 + 21 = 6", Verdict.LOOKUP),
        (2, "9 + z = 9 + 21 = 7", "9 * z = 9 * 21 = 5", Verdict.LOOKUP),
        (2, "9 + z = 9 + 21 = 7", "9 + z = 9 + 21 = 30", Verdict.ARITHMETIC),
        (3, "3 * F = 3 * 7 = 21", "3 * y = 3 * 7 = 21", Verdict.LOOKUP),
        (3, "as n; so n =", "as k; so k =", Verdict.LETTER),
        (3, "Ocean Basket's Blueberry Patch", "Ocean Basket's Pear", Verdict.NOT_COMPUTABLE),
        (3, "Ocean Basket's Blueberry Patch as n; so n = 3 * F = 3 * 7 = 21",
         "Ocean Basket's Product as n; so n = 3 * F = 3 * 7 = 21", Verdict.NOT_COMPUTABLE),
        (4, "Q = d = 6", "Q = d = 7", Verdict.LOOKUP),
        (4, "Q = d = 6", "Q = k = 4", Verdict.LOOKUP),
        (4, "Q = d = 6", "Q = 6", Verdict.LOOKUP),
        (5, "Truvian Market's Product as e; so e = F = 7", "Truvian Market's Blueberry Patch as e; so e = F = 7",
         Verdict.REPEATED),
        (6, "n + Q = 21 + 6 = 4", "n + n = 21 + 21 = 19", Verdict.LOOKUP),
        (7, "H = d * v = 6 * 4 = 1; so u = s + H = 5 + 1 = 6", "so u = s + v = 5 + 4 = 9", Verdict.LOOKUP),
        (7, "s = k * e = 4 * 7 = 5", "s = k * e = 4 * 7", Verdict.UNPARSABLE),
        (7, "; so u", "; u", Verdict.UNPARSABLE),
    ],
)  # fmt: skip
def test_wrong_variants_are_wrong_where_they_are(step: int, old: str, new: str, verdict: Verdict) -> None:
    steps = list(STEPS)
    assert old in steps[step]
    steps[step] = steps[step].replace(old, new)
    judgement = judge_market(*steps)
    assert (judgement.outcome, judgement.first_wrong_step) == (verdict, step), judgement.reason


def test_ends_that_are_wrong() -> None:
    assert judge_market(*STEPS, answer="7").outcome == Verdict.ANSWER
    assert judge_market(*STEPS[:-1], answer="4").outcome == Verdict.EARLY_STOP
    assert judge_market(*STEPS[:-1], " Define Mayfair Gate's").outcome == Verdict.UNPARSABLE
    assert judge_market(answer="6").outcome == Verdict.EARLY_STOP


def test_published_rule_overlooks_constants_and_operations_but_not_parents_and_answer() -> None:
    def market(step: int, old: str, new: str, *more: tuple[int, str, str]) -> list[str]:
        steps = list(STEPS)
        for at, before, after in ((step, old, new), *more):
            assert before in steps[at]
            steps[at] = steps[at].replace(before, after)
        return steps

    # 3 * 7 = 21 = 14 + 7: another operation and constant, the same value.
    same_value = market(3, "3 * F = 3 * 7 = 21", "14 + F = 14 + 7 = 21")
    assert judge_market(*same_value).outcome == Verdict.LOOKUP
    assert judge_market(*same_value, rule="published").ok
    # Another value, carried through to another answer: 15 + 7 = 22, 22 + 6 = 5, 6 * 5 = 7, 5 + 7 = 12.
    other_value = market(
        *(3, "3 * F = 3 * 7 = 21", "15 + F = 15 + 7 = 22"),
        (6, "21 + 6 = 4", "22 + 6 = 5"),
        (7, "d * v = 6 * 4 = 1; so u = s + H = 5 + 1 = 6", "d * v = 6 * 5 = 7; so u = s + H = 5 + 7 = 12"),
    )
    assert judge_market(*other_value, answer="12", rule="published").outcome == Verdict.ANSWER
    wrong_parent = market(4, "Q = d = 6", "Q = k = 4")
    assert judge_market(*wrong_parent, rule="published").first_wrong_step == 4


def test_a_step_becomes_computable_when_its_parents_are_known() -> None:
    verifier = Verifier(MARKET, MODULUS)
    reference = ("Ocean Basket", "Product")
    verifier.known |= {("Ocean Basket", "Blueberry Patch"): 21}
    assert not verifier.computable(reference)
    verifier.known |= {("Ocean Basket", "Rye Bread"): 6}
    assert verifier.computable(reference)
    verifier.known |= {reference: 4}
    assert not verifier.computable(reference)
