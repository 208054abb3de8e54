"""See igsm/solution.py, igsm/mistakes.py, igsm/text.py, igsm/splits.py and igsm/stream.py."""

import numpy as np
from numba import uint64

from peft_study.igsm.fast.chance import below, mix, sample, state_at, uniform, weighted
from peft_study.igsm.fast.jit import jit
from peft_study.igsm.fast.layout import (
    ANSWER_VALUE,
    AS,
    BACK,
    CONSTANT,
    CONSTANTS,
    COPY,
    DEFINE,
    FINAL,
    INSTANCES,
    MINUS,
    MISS,
    MISTAKE,
    MISTAKE_AS,
    MISTAKE_AS_RIGHT,
    MISTAKE_DEFINE,
    MISTAKES,
    MOST_NODES,
    NAME,
    NEW_LETTER,
    NODES,
    NOTHING,
    ONE,
    OPERAND,
    OPERATOR,
    OPS,
    ORDERED,
    PLUS,
    PROBLEM,
    REFERENCE,
    RESULT,
    RETRY,
    SYNTAX,
    TIMES,
    TWO,
    W_AND,
    W_ANSWER,
    W_AS,
    W_BACK,
    W_COMMA,
    W_DEFINE,
    W_DIFFERENCE,
    W_DOES,
    W_EACH,
    W_END,
    W_EQUALS,
    W_HAVE,
    W_IS,
    W_MANY,
    W_MINUS,
    W_MORE,
    W_NUMBER,
    W_OF,
    W_PLUS,
    W_PROBLEM,
    W_QUESTION,
    W_SEMICOLON,
    W_SO,
    W_SOLUTION,
    W_STAR,
    W_STOP,
    W_SUM,
    W_TIMES,
    WEAK,
    ZERO,
)
from peft_study.igsm.fast.problem import try_problem


@jit
def put(ids, kinds, at, token, kind):
    ids[at] = token
    kinds[at] = kind
    return at + 1


@jit
def put_name(lexicon, draft, node, ids, kinds, at, kind, inner):
    """Write X's Y; the names are of `kind`, what joins them of `inner`."""
    abstract, layer, item, target = draft.where[node]
    at = put(ids, kinds, at, draft.names[layer, item], kind)
    at = put(ids, kinds, at, lexicon.words[W_OF], inner)
    thing = draft.names[target, 4] if abstract else draft.names[layer + 1, target]
    return put(ids, kinds, at, thing, kind)


@jit
def put_sentence(lexicon, draft, node, ids, kinds, at):
    """See text.sentence_words."""
    words = lexicon.words
    constant, constant_op, operation = draft.formula[node]
    size = draft.size[node]
    at = put(ids, kinds, at, words[W_NUMBER], PROBLEM)
    at = put_name(lexicon, draft, node, ids, kinds, at, PROBLEM, PROBLEM)
    at = put(ids, kinds, at, words[W_EQUALS], PROBLEM)
    if constant >= 0:
        at = put(ids, kinds, at, lexicon.numbers[constant], PROBLEM)
    if constant_op:
        at = put(ids, kinds, at, words[W_MORE] if constant_op == PLUS else words[W_TIMES], PROBLEM)
    if size > 1:
        at = put(ids, kinds, at, words[W_SUM] if operation == PLUS else words[W_DIFFERENCE], PROBLEM)
    for i in range(size):
        if i:
            at = put(ids, kinds, at, words[W_AND] if i == size - 1 else words[W_COMMA], PROBLEM)
        at = put(ids, kinds, at, words[W_EACH], PROBLEM)
        at = put_name(lexicon, draft, draft.parents[node, i], ids, kinds, at, PROBLEM, PROBLEM)
    return put(ids, kinds, at, words[W_STOP], PROBLEM)


@jit
def put_question(lexicon, draft, ids, kinds, at):
    """See text.question_words."""
    words = lexicon.words
    abstract, layer, item, target = draft.where[draft.order[draft.meta[ORDERED] - 1]]
    at = put(ids, kinds, at, words[W_MANY], PROBLEM)
    at = put(ids, kinds, at, draft.names[target, 4] if abstract else draft.names[layer + 1, target], PROBLEM)
    at = put(ids, kinds, at, words[W_DOES], PROBLEM)
    at = put(ids, kinds, at, draft.names[layer, item], PROBLEM)
    at = put(ids, kinds, at, words[W_HAVE], PROBLEM)
    return put(ids, kinds, at, words[W_QUESTION], PROBLEM)


@jit
def put_statement(lexicon, draft, ids, kinds, at):
    for i in range(draft.meta[INSTANCES]):
        at = put_sentence(lexicon, draft, draft.sentences[i], ids, kinds, at)
    return at


@jit
def calculate(operator, left, right, modulus):
    """Operators as in Draft.formula; 0 copies."""
    if operator == PLUS:
        return (left + right) % modulus
    if operator == MINUS:
        return (left - right) % modulus
    if operator == TIMES:
        return left * right % modulus
    return left


@jit
def put_calculation(lexicon, letters, modulus, left, operator, right, own, first_kind, ids, kinds, at):
    """Write `x = hint = numbers = result`; left and right are (letter or -1, value). Return place and result."""
    words = lexicon.words
    result = calculate(operator, left[1], right[1], modulus)
    at = put(ids, kinds, at, lexicon.letters[letters[own]], first_kind)
    at = put(ids, kinds, at, words[W_IS], SYNTAX)
    if operator == COPY:
        if left[0] >= 0:
            at = put(ids, kinds, at, lexicon.letters[letters[left[0]]], REFERENCE)
            at = put(ids, kinds, at, words[W_IS], SYNTAX)
            return put(ids, kinds, at, lexicon.numbers[result], RESULT), result
        return put(ids, kinds, at, lexicon.numbers[left[1]], CONSTANT), result
    sign = words[W_PLUS] if operator == PLUS else words[W_MINUS] if operator == MINUS else words[W_STAR]
    if left[0] >= 0:
        at = put(ids, kinds, at, lexicon.letters[letters[left[0]]], REFERENCE)
    else:
        at = put(ids, kinds, at, lexicon.numbers[left[1]], CONSTANT)
    at = put(ids, kinds, at, sign, OPERATOR)
    at = put(ids, kinds, at, lexicon.letters[letters[right[0]]], REFERENCE)
    at = put(ids, kinds, at, words[W_IS], SYNTAX)
    at = put(ids, kinds, at, lexicon.numbers[left[1]], OPERAND)
    at = put(ids, kinds, at, sign, SYNTAX)
    at = put(ids, kinds, at, lexicon.numbers[right[1]], OPERAND)
    at = put(ids, kinds, at, words[W_IS], SYNTAX)
    return put(ids, kinds, at, lexicon.numbers[result], RESULT), result


@jit
def emit(draft, count, operator, left, right):
    """Add an operation to the plan of a step; return what its result is referred to by, and the new count."""
    draft.plan[count, 0], draft.plan[count, 1], draft.plan[count, 2] = operator, left, right
    return MOST_NODES + count, count + 1


@jit
def plan_operations(draft, node):
    """Write the operations of the step that defines `node` to the plan, and return how many.

    See solution.plan_operations. Operands are nodes, results of earlier operations (MOST_NODES and up), constants
    (CONSTANTS and down), or NOTHING.
    """
    size, parents = draft.size[node], draft.parents[node]
    constant, constant_op, operation = draft.formula[node]
    width = ONE
    if draft.where[node, 0]:
        constant, operation = NOTHING, PLUS
        width = ONE if draft.where[node, 3] == draft.where[node, 1] + 1 else TWO
    count, total = ZERO, NOTHING
    for i in range(0, size, width):
        value = parents[i]
        if width == TWO:
            value, count = emit(draft, count, TIMES, parents[i], parents[i + 1])
        if total == NOTHING:
            total = value
        else:
            total, count = emit(draft, count, operation, total, value)
    if constant >= 0:
        if total == NOTHING:
            total = CONSTANTS - constant
        else:
            total, count = emit(draft, count, constant_op, CONSTANTS - constant, total)
    if count == 0:
        # An item that holds nothing has none of what is counted.
        _, count = emit(draft, count, COPY, CONSTANTS if total == NOTHING else total, NOTHING)
    return count


@jit
def operand(draft, reference):
    """Return the letter, or -1 for a constant, and the value of what an operation of the plan refers to."""
    if reference >= MOST_NODES:
        return draft.plan[reference - MOST_NODES, 3], draft.plan[reference - MOST_NODES, 4]
    if reference >= 0:
        return draft.letter[reference], draft.value[reference]
    return NOTHING, max(CONSTANTS - reference, ZERO)


@jit
def put_step(lexicon, rules, draft, node, bound, ids, kinds, at):
    """Write the step that defines `node`, `bound` letters after those before; see text.step_words.

    The own letter is bound first, then those of intermediate results. Returns the place and the letters bound.
    """
    words, letters = lexicon.words, draft.letters
    count = plan_operations(draft, node)
    own = bound
    at = put(ids, kinds, at, words[W_DEFINE], DEFINE)
    at = put_name(lexicon, draft, node, ids, kinds, at, NAME, SYNTAX)
    at = put(ids, kinds, at, words[W_AS], AS)
    at = put(ids, kinds, at, lexicon.letters[letters[own]], NEW_LETTER)
    for i in range(count):
        bound += 1
        at = put(ids, kinds, at, words[W_SEMICOLON], SYNTAX)
        letter, kind = bound, NEW_LETTER
        if i == count - 1:
            at = put(ids, kinds, at, words[W_SO], SYNTAX)
            letter, kind = own, SYNTAX
        left, right = operand(draft, draft.plan[i, 1]), operand(draft, draft.plan[i, 2])
        at, result = put_calculation(
            lexicon, letters, rules.modulus, left, draft.plan[i, 0], right, letter, kind, ids, kinds, at
        )
        draft.plan[i, 3], draft.plan[i, 4] = letter, result
    draft.letter[node], draft.value[node] = draft.plan[count - 1, 3], draft.plan[count - 1, 4]
    return put(ids, kinds, at, words[W_STOP], SYNTAX), bound


@jit
def can_next(draft, node, known):
    """Whether all that `node`, in use or not, is computed from is known."""
    abstract = draft.where[node, 0]
    unknown = 0
    for i in range(draft.made_size[node] if abstract else draft.size[node]):
        unknown += not known[draft.made[node, i] if abstract else draft.parents[node, i]]
    return unknown == 0


@jit
def draw_mistakes(rng, rules, draft):
    """See mistakes.draw_mistakes."""
    meta = draft.meta
    meta[MISTAKES] = 0
    if rules.retry_rate == 0.0:
        return
    known = np.zeros(meta[NODES], np.bool_)
    pool = draft.lists[0]
    for step in range(meta[ORDERED]):
        count = -1
        while uniform(rng) < rules.retry_rate:
            if count < 0:
                count = 0
                if rules.mistake_kind == RETRY:
                    for node in range(meta[NODES]):
                        if not known[node] and not can_next(draft, node, known):
                            pool[count] = node
                            count += 1
                elif rules.mistake_kind == MISS:
                    for node in range(meta[INSTANCES]):
                        if not known[node]:
                            pool[count] = node
                            count += 1
                else:
                    for i in range(step + (0 if rules.mistake_kind == WEAK else 1), meta[ORDERED]):
                        pool[count] = draft.order[i]
                        count += 1
            if count == 0:
                break
            chosen = below(rng, count)
            node = pool[chosen]
            for i in range(chosen, count - 1):
                pool[i] = pool[i + 1]
            count -= 1
            at = meta[MISTAKES]
            draft.mistakes[at, 0], draft.mistakes[at, 1] = step, node
            draft.mistakes[at, 2] = can_next(draft, node, known)
            meta[MISTAKES] += 1
        known[draft.order[step]] = True


@jit
def put_mistake(lexicon, draft, mistake, ids, kinds, at):
    """See text.mistake_words."""
    words = lexicon.words
    at = put(ids, kinds, at, words[W_DEFINE], MISTAKE_DEFINE)
    at = put_name(lexicon, draft, draft.mistakes[mistake, 1], ids, kinds, at, MISTAKE, MISTAKE)
    at = put(ids, kinds, at, words[W_AS], MISTAKE_AS_RIGHT if draft.mistakes[mistake, 2] else MISTAKE_AS)
    at = put(ids, kinds, at, words[W_BACK], BACK)
    return put(ids, kinds, at, words[W_STOP], SYNTAX)


@jit
def put_solution(lexicon, rules, draft, ids, kinds, at):
    """See text.solution_words. Binds letters and values."""
    bound, mistake = ZERO, ZERO
    for step in range(draft.meta[ORDERED]):
        while mistake < draft.meta[MISTAKES] and draft.mistakes[mistake, 0] == step:
            at = put_mistake(lexicon, draft, mistake, ids, kinds, at)
            mistake += 1
        at, bound = put_step(lexicon, rules, draft, draft.order[step], bound, ids, kinds, at)
    draft.meta[ANSWER_VALUE] = draft.value[draft.order[draft.meta[ORDERED] - 1]]
    return at


@jit
def problem_hash(lexicon, draft, ids, kinds):
    """See splits.problem_hash: sentences in any order, then the question."""
    total = uint64(0)
    for i in range(draft.meta[INSTANCES]):
        size = put_sentence(lexicon, draft, i, ids, kinds, ZERO)
        word = uint64(0)
        for at in range(size):
            word = mix(word ^ lexicon.codes[ids[at]])
        total += word
    size = put_question(lexicon, draft, ids, kinds, ZERO)
    word = uint64(0)
    for at in range(size):
        word = mix(word ^ lexicon.codes[ids[at]])
    return mix(total ^ word)


@jit
def template_hash(lexicon, rules, draft, ids, kinds):
    """See splits.hash_of_template: the clean solution without names, numbers and the choice of letters."""
    for i in range(len(draft.letters)):
        draft.letters[i] = i
    draft.meta[MISTAKES] = 0
    size = put_solution(lexicon, rules, draft, ids, kinds, ZERO)
    first = lexicon.letters[0]
    last = lexicon.letters[len(lexicon.letters) - 1]
    word = uint64(0)
    for at in range(size):
        token = ids[at]
        code = lexicon.template_codes[token]
        if first <= token <= last:
            code = lexicon.letter_codes[token - first]
        word = mix(word ^ code)
    return word


@jit
def find_problem(rng, rules, lexicon, op, draft, ids, kinds):
    """Draw problems until one has `op` operations and is of the split.

    Returns the state that the draw of that problem began with, its hash and whether it was found; `rng` is then where
    letters are drawn.
    """
    for _ in range(rules.draws if op > 0 else 0):
        began = rng[0]
        if not try_problem(rng, rules, lexicon, op, draft):
            continue
        if rules.by_template:
            found = template_hash(lexicon, rules, draft, ids, kinds)
        else:
            found = problem_hash(lexicon, draft, ids, kinds)
        if rules.low <= found % uint64(23) < rules.high:
            return began, found, True
    return rng[0], uint64(0), False


@jit
def official_op(rng, rules):
    """See stream.official_op."""
    while True:
        first = ONE + below(rng, rules.op_max)
        op = min(first, ONE + below(rng, rules.op_max))
        if rules.possible[op]:
            return op


@jit
def is_possible(state, rules, lexicon, op, draft, ids, kinds):
    """Whether a problem of `op` operations is of the split; `rules` must not be official."""
    rng = np.empty(1, np.uint64)
    rng[0] = state
    return find_problem(rng, rules, lexicon, op, draft, ids, kinds)[2]


@jit
def write_document(seed, mistake_seed, index, rules, lexicon, draft, ids, kinds):
    """Write document `index` of the stream of `seed` to ids and kinds; return its length, op and hash.

    The length is -1 where there is no such document, -2 where it does not fit.
    """
    rng = np.empty(1, np.uint64)
    rng[0] = state_at(seed, index)
    op = official_op(rng, rules) if rules.official else rules.ops[weighted(rng, rules.weights, len(rules.weights))]
    began, found, there = find_problem(rng, rules, lexicon, op, draft, ids, kinds)
    if not there:
        return -1, op, found, began
    meta = draft.meta
    for i in range(rules.letter_pool):
        draft.lists[0, i] = i
    sample(rng, draft.lists[0], rules.letter_pool, meta[OPS])
    for i in range(meta[OPS]):
        draft.letters[i] = draft.lists[0, i]
    rng[0] = state_at(mistake_seed, index)
    draw_mistakes(rng, rules, draft)
    # An upper bound of what is written: a step of n parents takes at most 12 tokens for each operation and 12 more.
    if 40 * meta[INSTANCES] + 24 * (meta[OPS] + meta[ORDERED]) + 7 * meta[MISTAKES] + 16 > len(ids):
        return -2, op, found, began
    words = lexicon.words
    at = put(ids, kinds, ZERO, words[W_PROBLEM], PROBLEM)
    if rules.question_first:
        at = put_question(lexicon, draft, ids, kinds, at)
    at = put_statement(lexicon, draft, ids, kinds, at)
    if not rules.question_first:
        at = put_question(lexicon, draft, ids, kinds, at)
    at = put(ids, kinds, at, words[W_SOLUTION], PROBLEM)
    at = put_solution(lexicon, rules, draft, ids, kinds, at)
    at = put(ids, kinds, at, words[W_ANSWER], DEFINE)
    at = put(ids, kinds, at, lexicon.numbers[meta[ANSWER_VALUE]], FINAL)
    return put(ids, kinds, at, words[W_END], SYNTAX), op, found, began
