"""ComfyUI prompts (API format) as plain data: read, slice, vary, hash, find files.

No function changes what it is given; results share the nodes that did not change.
"""

from __future__ import annotations

from comfyfleet.graph.border import (
    border,
    can_travel,
    is_worth_shipping,
    shipped_node,
    stand_in,
)
from comfyfleet.graph.branches import (
    BRANCH_CLASS,
    DISPATCHING,
    exclusive,
    find_branches,
    with_branches,
)
from comfyfleet.graph.digest import digest, model_key, node_digests, weights_of
from comfyfleet.graph.files import (
    LOADER_INPUTS,
    FileRef,
    find_files,
    is_file,
    is_weights_file,
    looks_like_file,
    missing_files,
    strings_in,
)
from comfyfleet.graph.literal import with_literals
from comfyfleet.graph.prompt import (
    Link,
    Prompt,
    as_link,
    downstream,
    find_problems,
    in_order,
    links_of,
    parse_prompt,
    problem_at,
    used_outputs,
    with_input,
)
from comfyfleet.graph.slice import cut, new_id, upstream
from comfyfleet.graph.split import find_splits, part_of_slices, slice_bounds, slices_nodes
from comfyfleet.graph.values import VALUE_TYPES, convert, value_lines
from comfyfleet.graph.vary import (
    clone_share,
    find_seeds,
    repeat,
    set_input,
    vary,
    vary_seeds,
    varying_nodes,
)

__all__ = [
    "BRANCH_CLASS",
    "DISPATCHING",
    "LOADER_INPUTS",
    "VALUE_TYPES",
    "FileRef",
    "Link",
    "Prompt",
    "as_link",
    "border",
    "can_travel",
    "clone_share",
    "convert",
    "cut",
    "digest",
    "downstream",
    "exclusive",
    "find_branches",
    "find_files",
    "find_problems",
    "find_seeds",
    "find_splits",
    "in_order",
    "is_file",
    "is_weights_file",
    "is_worth_shipping",
    "links_of",
    "looks_like_file",
    "missing_files",
    "model_key",
    "new_id",
    "node_digests",
    "parse_prompt",
    "part_of_slices",
    "problem_at",
    "repeat",
    "set_input",
    "shipped_node",
    "slice_bounds",
    "slices_nodes",
    "stand_in",
    "strings_in",
    "upstream",
    "used_outputs",
    "value_lines",
    "vary",
    "vary_seeds",
    "varying_nodes",
    "weights_of",
    "with_branches",
    "with_input",
    "with_literals",
]
