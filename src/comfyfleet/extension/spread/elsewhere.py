"""What a node takes along when its work is spread: the graph behind its models, values that travel.

A node that spreads names its *parts*: the internal nodes that compute a task on a worker, with
their numbers and links. What is upstream of these links either moves (loaders, patches) or is
computed once and shipped; see ``graph.border``. Values that are shipped and are no input of the
node come by ComfyUI's node expansion: ``FleetSpread`` has them as inputs and goes on.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io

from comfyfleet.comfy import prompts
from comfyfleet.comfy.shipped import digest_of
from comfyfleet.comfy.values import pack
from comfyfleet.config import is_worker
from comfyfleet.errors import InputError, Problem, WorkflowError
from comfyfleet.extension.master import master
from comfyfleet.extension.shares.shipping import travels_in, with_return, with_shipped
from comfyfleet.extension.spread.job import Job, Spread, Template
from comfyfleet.graph import Link, as_link, border, new_id, shipped_node, upstream
from comfyfleet.work import Packed

logger = logging.getLogger(__name__)

Prompt = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A kind of task: the node that computes it on a worker, and what that needs besides."""

    class_type: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    #: The node's inputs that are inputs of the spreading node under the same name.
    links: Sequence[str] = ()
    #: What this execution of the spreading node was given for them: ComfyUI executes a node once
    #: for each entry of a list.
    given: Mapping[str, Any] = field(default_factory=dict)


class Elsewhere:
    """Where the parts of a node can be computed: on the fleet as well, or here alone."""

    def __init__(self, templates: Mapping[str, Template] | None = None) -> None:
        self._templates = templates

    def spread(
        self,
        class_type: str,
        job: Job,
        compute: Callable[[Any], Any],
        tell: Callable[[Mapping[str, int]], None],
    ) -> None:
        """Compute a job whose tasks nodes of this class compute on workers; see ``Spread``."""
        if self._templates is None:
            Spread(job, compute, tell=tell).run()
            return
        fleet = master().fleet_soon()
        template, here = self._templates[class_type], master().computes
        Spread(job, compute, template=template, fleet=fleet, here=here, tell=tell).run()

    @property
    def num_devices(self) -> int:
        """How many compute, this process included if it does."""
        return 1 if self._templates is None else master().computes + len(master().worker_names)


#: A node's work, given where it can be computed.
Work = Callable[[Elsewhere], io.NodeOutput]


class Pending:
    """One execution of a spreading node that waits for what it will ship."""

    def __init__(self, node_id: str, prompt: Prompt, parts: Sequence[Part], work: Work) -> None:
        self.id = uuid.uuid4().hex
        self.prompt_id = prompts.current_prompt_id()
        self.node_id = node_id
        self._prompt = prompt
        self._work = work
        self._pieces = {part.class_type: _Piece(prompt, node_id, part) for part in parts}
        #: Values that cannot leave this process although their types can.
        self._refused: set[Link] = set()

    @property
    def links(self) -> list[Link]:
        """What must be known before tasks can go out."""
        found = (piece.border(self._refused) for piece in self._pieces.values())
        return list(dict.fromkeys(link for links in found for link in links))

    def go_on(self) -> io.NodeOutput:
        """The node's work, or the expansion that brings the values for it."""
        links = self.links
        if not links:
            return self.begin({})
        _pending[self.id] = self
        inputs: dict[str, Any] = {f"value_{i}": list(link) for i, link in enumerate(links)}
        name = f"{self.node_id}.{self.id}.{len(self._refused)}"
        node = {"class_type": "FleetSpread", "inputs": {**inputs, "job": self.id}}
        node["override_display_id"] = self.node_id
        return io.NodeOutput([name, 0], expand={name: node})

    def arrive(self, values: Sequence[Sequence[Any]]) -> io.NodeOutput:
        """Go on with the values of ``links``."""
        known = dict(zip(self.links, values, strict=True))
        packed: dict[Link, Packed] = {}
        for link, entries in known.items():
            if len(entries) > 1 and (entries := self._chosen(link, entries)) == []:
                logger.warning(
                    "node %s: node %s gives a list, from which other nodes make something for "
                    "each entry: this device computes alone",
                    *(self.node_id, link[0]),
                )
                return self._work(Elsewhere())
            try:
                packed[link] = pack(list(entries), "a value for the workers")
            except InputError:
                self._refused.add(link)
        if self._refused & known.keys():
            return self.go_on()
        return self.begin(packed)

    def _chosen(self, link: Link, entries: Sequence[Any]) -> list[Any]:
        """Of a list's entries the one that this execution was given; none if it is not known."""
        given = [piece.given[link] for piece in self._pieces.values() if link in piece.given]
        return [each for each in entries if given and each is given[0]][:1]

    def begin(self, values: Mapping[Link, Packed]) -> io.NodeOutput:
        digests = {link: digest_of(packed) for link, packed in values.items()}
        packed = {digests[link]: value for link, value in values.items()}
        templates = {
            name: piece.template(
                {link: digests[link] for link in piece.border(self._refused)}, packed
            )
            for name, piece in self._pieces.items()
        }
        return self._work(Elsewhere(templates))


class _Piece:
    """The graph of one part's units."""

    def __init__(self, prompt: Prompt, node_id: str, part: Part) -> None:
        self._node, self._task = new_id(prompt, "tile"), new_id(prompt, "task")
        inputs = prompt[node_id]["inputs"]
        links = {name: inputs[name] for name in part.links if as_link(inputs.get(name)) is not None}
        #: What the links give, as far as it is known.
        self.given = {
            link: value
            for name, value in part.given.items()
            if (link := as_link(links.get(name))) is not None
        }
        numbers = {**part.numbers, "task": [self._task, 0]}
        node = {"class_type": part.class_type, "inputs": {**numbers, **links}}
        whole = {**prompt, self._node: node, self._task: shipped_node("")}
        whole, self._sink = with_return(whole, {"value": (self._node, 0)})
        self._graph = upstream(whole, [self._sink])

    def border(self, refused: set[Link]) -> list[Link]:
        moving = {self._node, self._task, self._sink}
        return border(self._graph, moving, travels_in(self._graph, refused))

    def template(self, digests: Mapping[Link, str], values: Mapping[str, Packed]) -> Template:
        prompt = with_shipped(self._graph, digests, self._sink)
        del prompt[self._task]
        shipped = {digest: values[digest] for digest in digests.values()}
        return Template(prompt=prompt, task_node=self._task, values=shipped)


#: Id -> those that wait for values.
_pending: dict[str, Pending] = {}


def spread(hidden: Any, parts: Sequence[Part], work: Work) -> io.NodeOutput:
    """Let a node do its work with all devices: now, or when what workers need is known."""
    _forget_ended()
    if is_worker() or not master().has_workers:
        return work(Elsewhere())
    master().warm_up()
    prompt = prompts.plain_prompt(hidden.dynprompt)
    return Pending(hidden.unique_id, prompt, parts, work).go_on()


def arrive(pending_id: str, values: Sequence[Sequence[Any]]) -> io.NodeOutput:
    """Go on with a node that waited for these values."""
    return _pending.pop(pending_id).arrive(values)


def _forget_ended() -> None:
    """Prompts that were cancelled or failed never ask for theirs."""
    running = prompts.running_prompt_ids()
    for key in [key for key, each in _pending.items() if each.prompt_id not in running]:
        del _pending[key]


@contextmanager
def naming(hidden: Any, class_type: str) -> Iterator[None]:
    """What the user gave wrong is said with the node's id and class."""
    try:
        yield
    except WorkflowError:
        raise
    except InputError as error:
        node_id = hidden.unique_id
        problem = Problem(message=str(error), node_id=node_id, class_type=class_type)
        raise WorkflowError([problem]) from None
