"""See igsm/graphs.py and igsm/problem.py."""

import math

import numpy as np
from numba import uint64

from peft_study.igsm.fast.chance import below, between, gauss, sample, shuffle, uniform, weighted
from peft_study.igsm.fast.jit import jit
from peft_study.igsm.fast.layout import (
    COPY,
    INSTANCES,
    LAYERS,
    LEAST,
    MOST_NODES,
    NODES,
    ONE,
    OPS,
    ORDERED,
    PLUS,
    TIMES,
    TWO,
    USED,
    ZERO,
)  # fmt: skip


@jit
def draw_shape(rng, rules, s):
    """See graphs.draw_shape; returns n, m, d, w0, w1, e, p."""
    first = between(rng, ONE, s)
    second = between(rng, ONE, s)
    n = min(first, second) if rules.middle else max(first, second)
    m = max(first, second) if rules.middle else between(rng, n, s)
    relative = (s - 1) / (rules.ip_max - 1)
    weights = np.empty(3)
    for i in range(len(rules.sizes)):
        away = relative - (0.2, 0.5, 0.8)[i]
        weights[i] = math.exp(-(away * away))
    d = rules.sizes[weighted(rng, weights, len(rules.sizes))]
    one = rules.sizes[weighted(rng, weights, len(rules.sizes))]
    other = rules.sizes[weighted(rng, weights, len(rules.sizes))]
    w0, w1 = min(one, other), max(one, other)
    p = uniform(rng)
    low, high = (d - 1) * w0, max((d - 1) * w0, rules.ip_max)
    e = between(rng, low, high)
    e = min(e, between(rng, low, high))
    return n, m, d, w0, w1, min(e, (d - 1) * w1 * w1), p


@jit
def draw_structure(rng, d, w0, w1, e, p, draft):
    """See graphs.draw_structure."""
    counts, edge, room = draft.counts, draft.edge, draft.lists[0]
    for layer in range(4):
        counts[layer] = w0 if layer < d else 0
    while True:
        most, fewest = 0, 0
        for i in range(d - 1):
            most += counts[i] * counts[i + 1]
            fewest += counts[i + 1]
        if most >= e and (fewest == e or uniform(rng) >= p):
            break
        roomy = 0
        for layer in range(d):
            if counts[layer] < w1:
                room[roomy] = layer
                roomy += 1
        if roomy == 0:
            break
        counts[room[below(rng, roomy)]] += 1
    edge[:] = False
    edges = 0
    for i in range(d - 1):
        for k in range(counts[i + 1]):
            edge[i, below(rng, counts[i]), k] = True
            edges += 1
    others = 0
    for i in range(d - 1):
        for j in range(counts[i]):
            for k in range(counts[i + 1]):
                if not edge[i, j, k]:
                    room[others] = (i * 4 + j) * 4 + k
                    others += 1
    more = max(0, min(e - edges, others))
    sample(rng, room, others, more)
    for i in range(more):
        edge[room[i] // 16, room[i] // 4 % 4, room[i] % 4] = True
    draft.meta[LAYERS] = d


@jit
def number_nodes(rules, draft):
    """Number the parameters that the structure makes, and say what abstract ones are computed from."""
    meta, where, number, counts, edge = draft.meta, draft.where, draft.number, draft.counts, draft.edge
    d = meta[LAYERS]
    number[:] = -1
    nodes = 0
    for i in range(d - 1):
        for j in range(counts[i]):
            for k in range(counts[i + 1]):
                if edge[i, j, k]:
                    where[nodes, 0], where[nodes, 1], where[nodes, 2], where[nodes, 3] = 0, i, j, k
                    number[0, i, j, k] = nodes
                    nodes += 1
    meta[INSTANCES] = nodes
    for level in range(1, d):
        for i in range(d - level):
            for j in range(counts[i]):
                size = 0
                under = uint64(0)
                exists = True
                for k in range(counts[i + 1]):
                    if not edge[i, j, k]:
                        continue
                    instance = number[0, i, j, k]
                    draft.made[nodes, size] = instance
                    under |= uint64(1) << uint64(instance)
                    size += 1
                    if level > 1:
                        inner = number[1, i + 1, k, i + level]
                        if inner < 0:
                            exists = False
                            break
                        draft.made[nodes, size] = inner
                        under |= draft.under[inner]
                        size += 1
                if (
                    not exists
                    or (size == 0 and not rules.empty_abstract)
                    or (rules.abstract_parents_max and size > rules.abstract_parents_max)
                ):
                    continue
                where[nodes, 0], where[nodes, 1], where[nodes, 2], where[nodes, 3] = 1, i, j, i + level
                number[1, i, j, i + level] = nodes
                draft.made_size[nodes] = size
                draft.under[nodes] = under
                nodes += 1
    meta[NODES] = nodes
    meta[USED] = 0
    for node in range(nodes):
        draft.is_used[node] = False
        draft.constant[node] = False
        draft.size[node] = 0


@jit
def closure(draft, node, found):
    """Write to `found` what comes into use with `node`; return how many, and the operations they take."""
    stack = draft.lists[7]
    height, count, cost = 1, 0, 0
    stack[0] = node
    while height:
        height -= 1
        current = stack[height]
        if draft.is_used[current]:
            continue
        new = True
        for i in range(count):
            if found[i] == current:
                new = False
                break
        if not new:
            continue
        found[count] = current
        count += 1
        if draft.where[current, 0]:
            size = draft.made_size[current]
            cost += max(1, size - 1)
            for i in range(size):
                stack[height] = draft.made[current, i]
                height += 1
        else:
            cost += 1
    return count, cost


@jit
def use(draft, node):
    """Bring a node into use, an abstract one with its parents."""
    draft.is_used[node] = True
    draft.used[draft.meta[USED]] = node
    draft.meta[USED] += 1
    if draft.where[node, 0]:
        draft.size[node] = draft.made_size[node]
        for i in range(draft.made_size[node]):
            draft.parents[node, i] = draft.made[node, i]
    else:
        draft.size[node] = 0


@jit
def choose_parameters(rng, draft, n, m):
    """See problem._Builder.choose_parameters."""
    meta, where = draft.meta, draft.where
    unused, best, found = draft.lists[0], draft.lists[1], draft.lists[2]
    left, taken = n, 0
    while left > 0:
        best_count, best_cost = 0, 0
        for level in range(1, meta[LAYERS]):
            count = 0
            for node in range(meta[INSTANCES], meta[NODES]):
                if where[node, 3] - where[node, 1] == level and not draft.is_used[node]:
                    unused[count] = node
                    count += 1
            if count == 0:
                continue
            size, cost = closure(draft, unused[below(rng, count)], found)
            if cost > left:
                break
            best_count, best_cost = size, cost
            for i in range(size):
                best[i] = found[i]
        if best_count == 0:
            break
        for i in range(best_count):
            use(draft, best[i])
        left -= best_cost
        taken += best_cost
    count = 0
    for node in range(meta[INSTANCES]):
        if not draft.is_used[node]:
            unused[count] = node
            count += 1
    extra = min(max(m - taken, 0), count)
    sample(rng, unused, count, extra)
    for i in range(extra):
        use(draft, unused[i])
    meta[LEAST] = taken + extra


@jit
def pick(rng, draft, pool, count, scale, needed):
    """See problem._Builder.sort_parameters."""
    weights = np.empty(MOST_NODES)
    for i in range(count):
        bonus = draft.where[pool[i], 0] + (0 if needed[pool[i]] else 1)
        weights[i] = math.exp(scale * bonus)
    return pool[weighted(rng, weights, count)]


@jit
def select(nodes, count, marks, mark, to):
    """Write to `to` those of the first `count` nodes that have the mark; return how many."""
    found = 0
    for i in range(count):
        if marks[nodes[i]] == mark:
            to[found] = nodes[i]
            found += 1
    return found


@jit
def sort_parameters(rng, draft):
    """See problem._Builder.sort_parameters; False where the draw cannot be completed."""
    meta = draft.meta
    edge_rate = uniform(rng)
    scale = abs(gauss(rng))
    total = meta[USED]
    if total == 0:
        return False
    unplaced, free, ready, waiting, needed = (
        draft.lists[0], draft.lists[1], draft.lists[2], draft.lists[3], draft.lists[4],
    )  # fmt: skip
    for i in range(total):
        unplaced[i] = draft.used[i]
        waiting[draft.used[i]] = 0
        needed[draft.used[i]] = 0
    for i in range(total):
        node = draft.used[i]
        for j in range(draft.size[node]):
            waiting[draft.parents[node, j]] += 1
    left, placed = total, 0
    frees = select(unplaced, left, waiting, ZERO, free)
    current = free[below(rng, frees)]
    while True:
        placed += 1
        draft.order[total - placed] = current
        at = 0
        while unplaced[at] != current:
            at += 1
        for i in range(at, left - 1):
            unplaced[i] = unplaced[i + 1]
        left -= 1
        for j in range(draft.size[current]):
            waiting[draft.parents[current, j]] -= 1
            needed[draft.parents[current, j]] = 1
        if left == 0:
            break
        frees = select(unplaced, left, waiting, ZERO, free)
        readys = select(free, frees, needed, ONE, ready)
        if not draft.where[current, 0] and (readys == 0 or uniform(rng) < edge_rate):
            pool, count = (unplaced, left) if readys else (free, frees)
            chosen = pick(rng, draft, pool, count, scale, needed)
            draft.size[current] = 1
            draft.parents[current, 0] = chosen
            needed[chosen] = 1
            readys = select(free, frees, needed, ONE, ready)
        if readys == 0:
            return False
        current = ready[below(rng, readys)]
    meta[ORDERED] = total
    return True


@jit
def num_ops(parents):
    return max(1, parents - 1)


@jit
def spread_operations(rng, draft, count, most, extra, roomy):
    """Grant `count` operations, one by one, to necessary instance nodes that have room; `extra` says how many each."""
    order, total = draft.order, draft.meta[ORDERED]
    for i in range(total):
        extra[i] = 0
    for _ in range(count):
        found = 0
        for i in range(total):
            if not draft.where[order[i], 0] and extra[i] < max(min(i + 1, most) - 2, 0):
                roomy[found] = i
                found += 1
        if found == 0:
            break
        extra[roomy[below(rng, found)]] += 1


@jit
def add_operands(rng, rules, draft, s):
    """See problem._Builder.add_operands; sets the operations that the solution takes."""
    meta, order, most = draft.meta, draft.order, rules.parents_max
    roomy, extra, pool = draft.lists[0], draft.lists[1], draft.lists[2]
    total = meta[ORDERED]
    spread_operations(rng, draft, s - meta[LEAST], most, extra, roomy)
    ops = 0
    for i in range(total):
        node = order[i]
        if draft.where[node, 0]:
            ops += num_ops(draft.size[node])
            continue
        degree = extra[i] + 2 if extra[i] else between(rng, ONE, TWO)
        degree = min(degree, i + 1, most)
        if degree == i + 1:
            draft.size[node] = i
            for j in range(i):
                draft.parents[node, j] = order[j]
            draft.constant[node] = True
            ops += num_ops(degree)
            continue
        chosen = draft.size[node]  # 0 or 1 of them
        kept = draft.parents[node, 0] if chosen else -1
        constant = False
        count = 1
        pool[0] = -1  # the random constant
        for j in range(i):
            if order[j] != kept:
                pool[count] = order[j]
                count += 1
        taken = chosen
        if taken < degree and uniform(rng) < 0.5:
            constant = True
            taken += 1
            for j in range(count - 1):
                pool[j] = pool[j + 1]
            count -= 1
        sample(rng, pool, count, degree - taken)
        for j in range(degree - taken):
            if pool[j] < 0:
                constant = True
            else:
                draft.parents[node, chosen] = pool[j]
                chosen += 1
        draft.size[node] = chosen
        draft.constant[node] = constant
        ops += num_ops(chosen + constant)
    meta[OPS] = ops


@jit
def add_unnecessary(rng, rules, draft):
    """See problem._Builder.add_unnecessary."""
    meta = draft.meta
    remaining, independent, pool, found = draft.lists[0], draft.lists[1], draft.lists[2], draft.lists[3]
    left = 0
    for node in range(meta[INSTANCES]):
        if not draft.is_used[node]:
            remaining[left] = node
            left += 1
    shuffle(rng, remaining, left)
    alone_count = 0
    for r in range(left):
        node = remaining[r]
        alone = uniform(rng) < 0.5
        count = 0
        if alone:
            count = alone_count
            for i in range(count):
                pool[i] = independent[i]
        else:
            count = meta[USED]
            have = uint64(0)
            for i in range(count):
                pool[i] = draft.used[i]
                if draft.used[i] < meta[INSTANCES]:
                    have |= uint64(1) << uint64(draft.used[i])
            for abstract in range(meta[INSTANCES], meta[NODES]):
                if not draft.is_used[abstract] and (draft.under[abstract] & ~have) == 0:
                    pool[count] = abstract
                    count += 1
        degree = 1
        while degree < min(count + 1, rules.parents_max) and uniform(rng) < 0.5:
            degree += 1
        constant = degree == count + 1 or uniform(rng) < 0.5
        operands = degree - (1 if constant else 0)
        sample(rng, pool, count, operands)
        for i in range(operands):
            size, _ = closure(draft, pool[i], found)
            for j in range(size):
                use(draft, found[j])
        use(draft, node)
        draft.size[node] = operands
        for i in range(operands):
            draft.parents[node, i] = pool[i]
        draft.constant[node] = constant
        if alone:
            independent[alone_count] = node
            alone_count += 1


@jit
def draw_names(rng, rules, lexicon, draft):
    """See problem._draw_names."""
    d, pool = draft.meta[LAYERS], draft.lists[0]
    chain = below(rng, rules.chains)
    start = below(rng, 4 - d + 1)
    for layer in range(d):
        category = start + layer
        draft.names[layer, 4] = lexicon.categories[chain, category]
        subcategory = below(rng, rules.subcategories)
        for i in range(rules.names):
            pool[i] = lexicon.items[chain, category, subcategory, i]
        sample(rng, pool, rules.names, draft.counts[layer])
        for i in range(draft.counts[layer]):
            draft.names[layer, i] = pool[i]


@jit
def draw_formulas(rng, rules, draft):
    """Put the sentences into their order and draw the wording of each (problem._Builder.formula)."""
    total = draft.meta[INSTANCES]
    for node in range(total):
        draft.sentences[node] = node
    shuffle(rng, draft.sentences, total)
    for i in range(total):
        node = draft.sentences[i]
        size = draft.size[node]
        shuffle(rng, draft.parents[node], size)
        operation = COPY if size < 2 else PLUS
        if size == 2:
            operation = PLUS + below(rng, TWO)
        constant, constant_op = ZERO - 1, COPY
        if draft.constant[node]:
            if size == 0:
                constant = below(rng, rules.modulus)
            else:
                constant_op = PLUS if below(rng, TWO) == 0 else TIMES
                constant = between(rng, ONE if constant_op == TIMES else ZERO, rules.modulus - 1)
        draft.formula[node, 0], draft.formula[node, 1], draft.formula[node, 2] = constant, constant_op, operation


@jit
def order_terms(draft):
    """Put the terms of abstract parameters into the order of the solution (problem._in_order)."""
    far = draft.meta[NODES] + 1
    for node in range(draft.meta[NODES]):
        draft.place[node] = far
    for i in range(draft.meta[ORDERED]):
        draft.place[draft.order[i]] = i
    for u in range(draft.meta[USED]):
        node = draft.used[u]
        if not draft.where[node, 0]:
            continue
        width = 1 if draft.where[node, 3] == draft.where[node, 1] + 1 else 2
        parents = draft.parents[node]
        for i in range(width, draft.size[node], width):  # insertion: few terms, and stable
            j = i
            while j > 0 and draft.place[parents[j]] < draft.place[parents[j - width]]:
                for k in range(width):
                    parents[j + k], parents[j + k - width] = parents[j + k - width], parents[j + k]
                j -= width


@jit
def try_problem(rng, rules, lexicon, op, draft):
    """Draw a problem; False where the draw cannot be completed or has not `op` operations (problem.try_problem)."""
    s = op
    if rules.official:
        s = between(rng, ONE, rules.op_max)
        s = min(s, between(rng, ONE, rules.op_max))
        if s < op:
            return False
    n, m, d, w0, w1, e, p = draw_shape(rng, rules, s)
    sorted_out = False
    for _ in range(rules.tries):
        draw_structure(rng, d, w0, w1, e, p, draft)
        number_nodes(rules, draft)
        choose_parameters(rng, draft, n, m)
        sorted_out = sort_parameters(rng, draft)
        if sorted_out:
            break
    if not sorted_out:
        return False
    add_operands(rng, rules, draft, s)
    if draft.meta[OPS] != op:
        return False
    add_unnecessary(rng, rules, draft)
    draw_names(rng, rules, lexicon, draft)
    draw_formulas(rng, rules, draft)
    order_terms(draft)
    return True
