"""Splits: the hash of a problem, or of its solution's template, says what it is for (Part 2.1, section 2.4)."""

from peft_study.igsm.chance import MASK, Chance, mix
from peft_study.igsm.problem import Problem
from peft_study.igsm.settings import SPLIT_BINS
from peft_study.igsm.solution import solve
from peft_study.igsm.tables import hash_words, template_word
from peft_study.igsm.text import question_words, sentence_words, solution_words
from peft_study.igsm.vocabulary import LETTERS


def problem_hash(problem: Problem) -> int:
    """Return the 64-bit hash of a problem with its names and numbers, whatever the order of its sentences."""
    total = sum(hash_words(sentence_words(problem, parameter)) for parameter in problem.formulas) & MASK
    return mix(total ^ hash_words(question_words(problem)))


def template_words(problem: Problem) -> list[str]:
    """Return the template of the clean solution: no names, no numbers, letters by order of their first appearance."""
    words = [word.text for word in solution_words(problem, solve(problem, Chance(0)), [])]
    letters: dict[str, str] = {}
    for word in words:
        if word in LETTERS:
            letters.setdefault(word, f"letter {len(letters)}")
    return [letters.get(word) or template_word(word) for word in words]


def hash_of_template(problem: Problem) -> int:
    """Return the 64-bit hash of the template of the clean solution."""
    return hash_words(template_words(problem))


def split_hash(problem: Problem) -> int:
    """Return the hash that decides on the split of `problem`: of itself, or of its template, as the family has it."""
    return hash_of_template(problem) if problem.family.split_by == "template" else problem_hash(problem)


def split_of(problem: Problem) -> str:
    """Return the split that `problem` belongs to."""
    number = split_hash(problem) % 23
    return next(split for split, bins in SPLIT_BINS.items() if number in bins)
