"""Rules about tree ensembles: depth, cycles, and children or targets that do not exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# onnxruntime recurses into trees: 30,000 levels end the process.
_MAX_DEPTH = 1000
_LEAF = b"LEAF"
_MODES = {_LEAF} | {b"BRANCH_" + each for each in (b"LEQ", b"LT", b"GTE", b"GT", b"EQ", b"NEQ")} | {b"BRANCH_MEMBER"}


def tree_findings(op: str, attributes: Mapping[str, Any], width: int | None) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the trees of a TreeEnsemble, TreeEnsembleClassifier or TreeEnsembleRegressor.

    `width` is the number of features of the input, if it is known.
    """
    yield from _numbers(attributes, "nodes_featureids", width)
    yield from _of_arrays(attributes) if op == "TreeEnsemble" else _of_tables(attributes)


def _of_tables(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Check trees whose nodes have a tree and a number in it."""
    names = ("nodes_treeids", "nodes_nodeids", "nodes_truenodeids", "nodes_falsenodeids")
    trees, nodes, if_true, if_false = (_array(attributes, name) for name in names)
    modes = list(attributes.get("nodes_modes") or [])
    count = len(nodes)
    lengths = {name: len(_array(attributes, name)) for name in names} | {"nodes_modes": len(modes)}
    lengths |= {
        name: len(_array(attributes, name))
        for name in ("nodes_featureids", "nodes_values", "nodes_hitrates", "nodes_missing_value_tracks_true")
        if len(_array(attributes, name))
    }
    if set(lengths.values()) != {count}:
        yield "tree.structure", f"its lists have different lengths: {lengths}"
        return
    if not count:
        return
    base = int(nodes.max()) + 1
    if min(trees.min(), nodes.min()) < 0 or (int(trees.max()) + 1) * base >= 1 << 62:
        yield "tree.structure", "numbers of trees or nodes are negative or huge"
        return
    keys = trees * base + nodes
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():
        yield "tree.structure", "two nodes have the same number in one tree"
        return

    def places(of_trees: NDArray[Any], of_nodes: NDArray[Any]) -> NDArray[Any]:
        """Return the places of nodes in the lists, -1 for one that does not exist."""
        wanted = np.where((of_nodes >= 0) & (of_nodes < base) & (of_trees >= 0), of_trees * base + of_nodes, -1)
        at = np.minimum(np.searchsorted(ordered, wanted), count - 1)
        return np.where(ordered[at] == wanted, order[at], -1)

    unknown = set(modes) - _MODES
    if unknown:
        yield "tree.structure", f"nodes of the unknown kind {sorted(unknown)[0]!r}"
        return
    yield from _numbers(attributes, "target_ids", attributes.get("n_targets"))
    labels = max((len(attributes.get(name) or ()) for name in ("classlabels_int64s", "classlabels_strings")), default=0)
    yield from _numbers(attributes, "class_ids", max(labels, 1))
    inner = np.array(modes) != _LEAF
    children = np.full((count, 2), -1)
    for side, target in enumerate((if_true, if_false)):
        children[inner, side] = places(trees[inner], target[inner])
    missing = np.flatnonzero(inner & (children < 0).any(axis=1))
    if missing.size:
        yield "tree.structure", f"node {nodes[missing[0]]} of tree {trees[missing[0]]} has a child that does not exist"
        return
    for prefix in ("class", "target"):
        of_trees, of_nodes = (_array(attributes, f"{prefix}_{kind}") for kind in ("treeids", "nodeids"))
        if len(of_trees) != len(of_nodes):
            yield "tree.structure", f"the lists of {prefix} entries have different lengths"
            return
        if of_trees.size and (places(of_trees, of_nodes) < 0).any():
            yield "tree.structure", f"a {prefix} entry is of a node that does not exist"
            return
    is_member = np.array(modes) == b"BRANCH_EQ"
    yield from _walk(children, np.flatnonzero(inner), is_member)


def _of_arrays(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Check trees whose children are places in lists, or leaves."""
    if_true, if_false = _array(attributes, "nodes_truenodeids"), _array(attributes, "nodes_falsenodeids")
    leaf_true, leaf_false = _array(attributes, "nodes_trueleafs"), _array(attributes, "nodes_falseleafs")
    count = len(if_true)
    if {len(each) for each in (if_false, leaf_true, leaf_false, _array(attributes, "nodes_featureids"))} != {count}:
        yield "tree.structure", "its lists have different lengths"
        return
    leaves = max(len(_array(attributes, "leaf_targetids")), 1)
    children = np.full((count, 2), -1)
    for side, (target, is_leaf) in enumerate(((if_true, leaf_true), (if_false, leaf_false))):
        limit = np.where(is_leaf != 0, leaves, count)
        if ((target < 0) | (target >= limit)).any():
            yield "tree.structure", "a node has a child that does not exist"
            return
        children[:, side] = np.where(is_leaf != 0, -1, target)
    yield from _numbers(attributes, "nodes_modes", len(_MODES))
    yield from _numbers(attributes, "leaf_targetids", attributes.get("n_targets"))
    roots = _array(attributes, "tree_roots")
    if ((roots < 0) | (roots >= max(count, 1))).any():
        yield "tree.structure", "a root does not exist"
        return
    yield from _walk(children, np.arange(count), np.ones(count, bool))


def _numbers(attributes: Mapping[str, Any], name: str, limit: Any) -> Iterator[tuple[str, str]]:
    """Yield a finding if numbers of features, targets, classes or kinds are negative, or not below the limit."""
    numbers = _array(attributes, name)
    is_read = numbers.size and numbers.dtype.kind in "iuf"  # not a large tensor
    if is_read and (numbers.min() < 0 or (isinstance(limit, int) and numbers.max() >= max(limit, 1))):
        yield (
            "tree.structure",
            f"{name} from {numbers.min()} to {numbers.max()}, and there are {limit or 'none below 0'}",
        )


def _walk(children: NDArray[Any], inner: NDArray[Any], may_share: NDArray[Any]) -> Iterator[tuple[str, str]]:
    """Yield a finding if a tree is too deep or has a cycle, or if a node has two parents."""
    targets = children[inner].ravel()
    targets = targets[targets >= 0]
    parents = np.bincount(targets, minlength=len(children))
    waiting = parents.copy()
    current = np.flatnonzero(parents == 0)
    seen = depth = 0
    while current.size:  # a node comes after all its parents
        seen += current.size
        depth += 1
        if depth > _MAX_DEPTH + 1:
            yield "tree.depth", f"a tree has more than {_MAX_DEPTH:,} levels"
            return
        following = children[current].ravel()
        following = following[following >= 0]
        np.subtract.at(waiting, following, 1)
        current = np.unique(following[waiting[following] == 0])
    if seen < len(children):
        yield "tree.structure", f"{len(children) - seen} nodes are in a cycle, or below one"
        return
    shared = np.flatnonzero(parents > 1)
    if shared.size and not may_share.any():
        yield "tree.structure", f"{shared.size} nodes have several parents"


def _array(attributes: Mapping[str, Any], name: str) -> NDArray[Any]:
    found = attributes.get(name)
    return np.array(
        [] if found is None else getattr(found, "const", found), dtype=float if name.endswith("values") else None
    )
