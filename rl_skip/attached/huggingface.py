"""A model from transformers as a `LayerStack`, so that the routed forward pass, the environment, the agents and the export serve it."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.attaching import check_layers
from rl_skip.attached.called import CalledCarry, CalledStack, evaluating, inputs_of
from rl_skip.attached.calls import Given, LayerCall, alike, real_tokens
from rl_skip.attached.chain import ChainTrace, tracing_calls
from rl_skip.attached.finding import configured, find_layers, layers_config, run_all_layers, width_of
from rl_skip.attached.flops import transformer_flops
from rl_skip.attached.heads import answer
from rl_skip.attached.identity import DIGEST, digest, identity
from rl_skip.attached.library import quiet, require
from rl_skip.attached.rows import Places, few_rows, having_rows, places_by_shape, put_rows
from rl_skip.attached.standing import Way, any_hooked
from rl_skip.attached.tail import (
    Recorded,
    Tail,
    called_after,
    copied,
    head_modules,
    modules_beside,
    readout_plan,
    reads_one_token,
    recording_calls,
    speaks,
    standing_in,
    taken,
)
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_replace
from rl_skip.core.finite import refuse_not_finite
from rl_skip.core.inputs import Inputs
from rl_skip.core.readouts import Adapter, Readouts
from rl_skip.core.seal import seal
from rl_skip.core.stack import Carry
from rl_skip.core.tracing import refuse_tracing
from rl_skip.export.weights import save_weights

__all__ = ["HEAD", "HuggingFaceStack"]

HEAD = "head.safetensors"
"""Beside a saved backbone, the head that it has got."""
LINEAR = ("Linear", "Conv1D")  # the latter in GPT-2


class _Reached(Exception):
    """The forward call has come to its last layer, and nothing after it is wanted."""


@dataclass
class _ModelCarry(CalledCarry):
    shared = False
    before: Recorded = field(default_factory=dict)
    """What the modules before layer 0 returned, by name, so that they need not run again to finish."""
    before_places: Callable[[], Places] = dict
    """Finds where the rows are in it."""

    def take(self, rows: Tensor) -> "_ModelCarry":
        some = super().take(rows)
        assert isinstance(some, _ModelCarry)
        some.before = taken(self.before, rows, self.hidden.shape[0], self.before_places())
        return some

    def put(self, rows: Tensor, other: Carry) -> None:
        assert isinstance(other, _ModelCarry)
        B = self.hidden.shape[0]
        super().put(rows, other)
        alike = {name: len(outputs) for name, outputs in self.before.items()} == {name: len(outputs) for name, outputs in other.before.items()}
        before, places = self.before if alike else {}, self.before_places()
        self.before = {name: put_rows(outputs, other.before[name], rows, B, name, places) for name, outputs in before.items()}


OF_EACH_LAYER = ("layer_types", "no_rope_layers", "attention_layers")
"""What a configuration says of each layer, a list as long as there are layers."""
OF_SOME_LAYERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs")
"""Lists of the numbers of those layers that are of some kind."""


def _keep_configured(config: Any, layers: Sequence[int], depth: int) -> None:
    """Says in a configuration of `depth` layers that these alone are left. What it derives from a layer's number, such as by "every second one", is
    not mended: whoever writes such a model sees that it is another."""
    said = {name: value for name in (*OF_EACH_LAYER, *OF_SOME_LAYERS) if isinstance(value := getattr(config, name, None), list)}
    config.num_hidden_layers = len(layers)
    for name, value in said.items():
        if name in OF_SOME_LAYERS:
            kept = [layers.index(i) for i in value if i in layers]
        elif len(value) == depth:
            kept = [value[i] for i in layers]
        else:
            continue
        with suppress(AttributeError):  # where it follows from other fields
            setattr(config, name, kept)
    if "attention_layers" in said and hasattr(config, "attention_types"):  # of which GPT-Neo makes the former
        config.attention_types = [[list(config.attention_layers), 1]]


class HuggingFaceStack(CalledStack):
    """Any model from transformers whose layers rows may skip: captured, stepped and finished through its own forward.

    `begin` calls the model up to its layers and keeps the arguments that it calls them with; `finish` calls it once more, with
    the hidden state that the routes led to in the place of the layers. LayerDrop is off: the policy decides which layers run.
    Meanwhile the model is not itself, so one thread at a time calls the stack; an attached model takes calls of several.

    Args:
        model: the model; inputs are a dictionary of its arguments, or one tensor, its first.
        head: hidden state averaged over the real tokens (B, D) → outputs, or an `AttentionHead`, for a backbone without a head of its
            own. None: the outputs are the model's logits.
        layers: the path of the layers in the model; "auto" finds them.
        prompt_tokens: how many real tokens, from the first, the policy may look at; None: all. A causal model that is
            scored on its tokens must not let it look at those.
        prepare: what is done to the inputs of a batch before the model gets them, such as resizing images.

    Raises:
        UserError: if the layers are not found, or the width is not the model's.

    Example::

        stack = HuggingFaceStack(AutoModelForSequenceClassification.from_pretrained(folder))
        rollout = routed_forward(stack, policy, {"input_ids": ids, "attention_mask": mask}, price=0.1)
    """

    processor: Any = None
    """What made the inputs, such as a tokenizer; saved beside the model."""
    fresh: tuple[str, ...] = ()
    """Names of the model's weights that were not in its file, so that they have to be learned as the head's have."""

    def __init__(
        self,
        model: nn.Module,
        *,
        head: nn.Module | None = None,
        layers: str = "auto",
        prompt_tokens: int | None = None,
        prepare: Callable[[Inputs], Inputs] | None = None,
    ) -> None:
        path, routed = find_layers(model, layers)
        check_layers(path, routed)
        if configured(model, "use_weighted_layer_sum"):
            raise UserError(
                f"the head of {type(model).__name__} reads the hidden states after all layers (use_weighted_layer_sum of its configuration), of "
                "which a HuggingFaceStack keeps the last: rl_skip.attach(model) keeps them all"
            )
        width = width_of(model, path)
        if width is None:
            raise UserError(f"{type(model).__name__} has no configuration with a hidden_size; build a ModuleStack from its parts instead")
        super().__init__(routed, width=width)
        self.model, self.head, self.path, self.prompt_tokens, self.prepare = model, head, path, prompt_tokens, prepare
        self.flops = transformer_flops(layers_config(model, path), routed, width)
        self.register_buffer("layer_flops", self.flops.nominal(), persistent=False)
        self.speaks = head is None and speaks(model, self.causal)
        parameters = inspect.signature(model.forward).parameters
        self.options = {name: value for name, value in (("use_cache", False), ("return_dict", True)) if name in parameters}
        self.beside, self._way = modules_beside(model, path), Way(model, path)
        self._found_before: dict[frozenset[str], Places] = {}  # by which of the inputs have rows
        self._chains: dict[bool, tuple[str, ...] | None] = {}  # by whether the model trains, what it calls after its layers
        run_all_layers(model)

    def described(self) -> dict[str, Any]:
        return identity(self.model, self.path, self.channel_dim, self.prompt_tokens)

    def begin(self, inputs: Inputs) -> Carry:
        refuse_tracing("a HuggingFaceStack calls its model in parts: record its model itself, stack.model or the folder that rl-skip prune writes")
        inputs = inputs if self.prepare is None else self.prepare(inputs)
        self._know_modules()
        reached, calls, before = self._before_layers(inputs)
        calls[0].check()
        if not torch.compiler.is_exporting():  # where layers are recorded for all rows of a batch, and no rows are taken
            each = {id(call): i for i, call in calls.items()}  # layers that are called alike have one call
            settled = {one: self.settled(i, reached, calls[i]) for one, i in each.items()}
            calls = {i: settled[id(call)] for i, call in calls.items()}
        carry = _ModelCarry(**vars(self.carry_of(reached, calls[0], self.flops)))
        if carry.mask is None and isinstance(inputs, dict) and "attention_mask" in inputs:
            carry.mask = carry.hidden.new_ones(carry.hidden.shape[:2], dtype=torch.bool)  # rows with padding may come to take its place
        carry.calls, carry.inputs, carry.before, carry.causal = calls, inputs, before, self.causal
        carry.before_places = partial(self._places_before, before, inputs, calls[0].row_count)
        return carry

    def _know_modules(self) -> None:
        """Looks for the layers and the modules beside them anew where one was replaced; where hooks await its calls, the model is called."""
        if not self._way.stands:
            self._look_again()
        chain = self._chains.get(self.model.training)
        if chain is not None and self._awaited(chain):
            self._chains.clear()

    def _look_again(self) -> None:
        """Looks for the layers, and the modules beside them, as they are now."""
        path, routed = find_layers(self.model, self.path)
        if len(routed) != self.depth:
            raise UserError(f"{path} has {len(routed)} layers, and had {self.depth} when the stack was made: make a HuggingFaceStack of what is left")
        if any(one is not known for one, known in zip(routed, self.routed, strict=True)):
            if self.split is not None:
                raise UserError(f"a layer of {path} was replaced after its weights were split over processes: replace it before")
            check_layers(path, routed)
            self._hold(routed)
            with torch.inference_mode(False):  # in which they would serve no later call that learns
                self.flops = transformer_flops(layers_config(self.model, path), routed, self.width)
                self.layer_flops = self.flops.nominal().to(self.layer_flops.device)
        self.beside, self._way = modules_beside(self.model, path), Way(self.model, path)
        self._chains.clear()
        self._found_before.clear()

    def _awaited(self, chain: Sequence[str]) -> bool:
        """Whether hooks await calls that a chain of modules steps around, or of these modules, for whose copies the chain would not call them."""
        return self._way.watched or any_hooked(self.beside[name] for name in chain)

    def _places_before(self, before: Recorded, inputs: Inputs, B: int) -> Places:
        """Where the rows are in what the modules before the layers returned for `inputs`, found by calling them for a few rows."""
        kind = having_rows(inputs, B) if isinstance(inputs, dict) else frozenset()
        found = self._found_before.get(kind, {})
        if B > 1 and not found.keys() >= places_by_shape(before, {}, B, B).keys():
            few = few_rows(B, device=self._device())
            with torch.no_grad(), evaluating(self.model):
                again = self._before_layers(inputs_of(inputs, few, B), record=True)[2]
            found = {**found, **places_by_shape(before, again, B, few.shape[0])}
            self._found_before[kind] = found
        return found

    def _before_layers(self, inputs: Inputs, record: bool = False) -> tuple[Tensor, dict[int, LayerCall], Recorded]:
        """Calls the model up to its layers: the hidden state there, the calls of the layers, and what the modules before them returned: nothing where
        no one will ask for it, unless it is to `record` them all the same."""
        calls: dict[int, LayerCall] = {}
        given: dict[int, Given] = {}
        reached: list[Tensor] = []

        def called(i: int, *args: Any, **kwargs: Any) -> Any:
            given[i] = self.names[i], args, kwargs
            if reached and alike(given[i], given[i - 1]):
                hidden, calls[i] = args[0], calls[i - 1]
            else:
                hidden, calls[i] = LayerCall.of(*given[i])
            reached.append(hidden)
            if i == self.depth - 1 and not torch.compiler.is_exporting():  # where the rest is dead code, and an exception would tear the trace
                raise _Reached
            return hidden if self.forms[i] is None else self.returned(i, CalledCarry(hidden=hidden, full_flops=hidden, calls=calls))

        before: Recorded = {}
        known = self._chains.get(self.model.training) is not None  # then only those that come after the layers are called again
        recording = nullcontext() if known and not record else recording_calls(self.beside, before, reached)
        with recording, standing_in(self.routed, [partial(called, i) for i in range(self.depth)], hooks=False), suppress(_Reached):
            self._call(inputs)
        return reached[0], calls, before

    def finish(self, carry: Carry) -> Tensor:
        along = self._along_chain(carry.hidden, carry.mask, nn.Identity())
        return self._answered(carry, nn.Identity()) if along is None else along

    def _answered(self, carry: Carry, readout: nn.Module, hooks: bool = False) -> Tensor:
        """The model's outputs with the hidden state of the carry in the place of its layers, whose `hooks` were called with them; by copies of
        modules where `readout` has some."""
        assert isinstance(carry, _ModelCarry) and carry.inputs is not None
        inputs = carry.inputs
        carry = replace(carry, hidden=readout(carry.hidden, carry.mask)) if isinstance(readout, Adapter) else carry
        traces: list[ChainTrace] = []

        def pass_by(i: int, *args: Any, **kwargs: Any) -> Any:
            if i == self.depth - 1:
                traces.append(ChainTrace(carry.hidden))
            _, call = LayerCall.of(self.names[i], args, kwargs)
            return self.returned(i, CalledCarry(hidden=carry.hidden, full_flops=carry.full_flops, calls={i: call}))

        copies = _copies(readout)
        passing = standing_in(self.routed, [partial(pass_by, i) for i in range(self.depth)], hooks)
        answering = standing_in([self.beside[name] for name in copies], [copy.__call__ for copy in copies.values()])
        with self._replaying(carry.before), passing, answering, tracing_calls(self.beside, traces):
            outputs = self._call(inputs)
        if self.head is not None:
            mask = real_tokens(carry.calls[0], carry.hidden.shape[1])
            hidden = outputs.last_hidden_state
            return answer(self.head, hidden, None if mask is None else mask[:, : hidden.shape[1]])  # Longformer pads for its layers alone
        logits = getattr(outputs, "logits", None)
        if logits is None:
            raise UserError(f"{type(self.model).__name__} returns no logits: give the stack a head, or load the model with one")
        if not torch.compiler.is_compiling():
            chain = traces[0].names(logits) if traces else None  # a model may end before its last layer
            self._chains[self.model.training] = None if chain is None or self._awaited(chain) else chain
        return logits

    def _along_chain(self, hidden: Tensor, mask: Tensor | None, readout: nn.Module) -> Tensor | None:
        """What `_answered` says, where the model has shown that it does no more after its layers than to call modules in turn; else None."""
        chain = self._chains.get(self.model.training)
        if chain is None:
            return None
        copies = _copies(readout)
        hidden = readout(hidden, mask) if isinstance(readout, Adapter) else hidden
        for name in chain:
            hidden = copies.get(name, self.beside[name])(hidden)
        return hidden

    def readout(self) -> nn.Module | None:
        return self.head

    def read(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        if self.head is not None and not isinstance(readout, Adapter):
            return answer(readout, *self.gathered(carry, rows))
        along = self._along_chain(*carry.some(rows), readout)
        return self._answered(carry if rows is None else carry.take(rows), readout) if along is None else along

    def look(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        if not self.speaks:
            return self.read(readout, carry, rows)
        hidden = self.last_seen(carry, rows)
        token = {str(self.model.main_input_name): torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)}  # any: no layer runs
        return self._answered(_ModelCarry(hidden=hidden, full_flops=carry.full_flops, inputs=token), readout).squeeze(1)

    def look_modules(self) -> tuple[nn.Module, ...] | None:
        chain = self._chains.get(self.model.training)
        if self.head is not None:
            return () if self.readouts is not None and not isinstance(self.readouts.each[0], Adapter) else None
        return None if self.speaks or chain is None else tuple(self.beside[name] for name in chain)

    def plan_readouts(self, example: Inputs | None) -> dict[str, Any]:
        if self.head is not None:
            return super().plan_readouts(example)
        if example is None:
            raise ValueError("which modules come after the layers is found on an example: add_readouts(example), or give a plan")
        with torch.no_grad():
            carry = self.begin(example)
            whole = partial(self._answered, carry, nn.Identity(), hooks=True)  # the model itself: what is looked for is how it calls its modules
            names = called_after(whole, self.routed[-1], self.beside)
            one_token = not self.speaks and reads_one_token(whole, self.routed[-1])
        return readout_plan(self.model, names, self.depth, self.width, self.fresh, one_token)

    def make_readout(self, plan: dict[str, Any]) -> nn.Module:
        return Tail(self.model, plan["modules"]) if "modules" in plan else super().make_readout(plan)

    def answer_as(self, readout: nn.Module) -> None:
        if not isinstance(readout, Tail):
            super().answer_as(readout)
            return
        for name, copy in readout.by_name().items():
            self.beside[name].load_state_dict(copy.state_dict())

    def count_readouts(self, example: Inputs, readouts: Readouts) -> None:
        super().count_readouts(example, readouts)
        if self.speaks:
            readouts.flops /= self.begin(example).hidden.shape[1]

    def head_modules(self) -> list[nn.Module]:
        if self.head is not None:
            return [self.head]
        return head_modules(self.model, self.beside, {} if self.readouts is None else self.readouts.plan, self.fresh)

    def keep(self, layers: Sequence[int]) -> "HuggingFaceStack":
        model, config = self.model, self._config
        kept = [self.routed[i] for i in layers]
        parent, _, name = self.path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.ModuleList(kept))
        _keep_configured(config, layers, self.depth)
        for i, layer in enumerate(kept):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = i  # type: ignore[assignment]
        pruned = HuggingFaceStack(model, head=self.head, layers=self.path, prompt_tokens=self.prompt_tokens, prepare=self.prepare)
        pruned.processor = self.processor
        return pruned

    def add_adapters(self, rank: int, alpha: int) -> Any:
        peft = require("peft")
        targets = [
            f"{self.path}.{i}.{name}"
            for i, layer in enumerate(self.routed)
            for name, module in layer.named_modules()
            if type(module).__name__ in LINEAR
        ]
        with quiet():
            return peft.get_peft_model(self.model, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))

    def write_model(self, folder: Path) -> bool:
        """Writes the model with its head, and what made its inputs; `load_model` reads it, and `from_pretrained` the model in it.

        The configuration is marked with a digest of the weights, by which a policy distinguishes the model from the one that it was made of.
        """
        refuse_not_finite(self, f"the model is not written to {folder}", "train it anew, with a lower --learning-rate")
        self._config._name_or_path = ""  # what it was made of is not what it is
        setattr(self._config, DIGEST, digest(self.model))

        def fill(new: Path) -> None:
            self.model.save_pretrained(new)  # type: ignore[operator]
            if self.processor is not None:
                self.processor.save_pretrained(new)
            if self.head is not None:
                save_weights(new / HEAD, self.head.state_dict())
            seal(new)

        with quiet():
            atomic_replace(folder, fill, overwrite=True)
        return True

    @property
    def _config(self) -> Any:
        return self.model.config

    def _call(self, inputs: Inputs) -> Any:
        return self.model(inputs, **self.options) if isinstance(inputs, Tensor) else self.model(**inputs, **self.options)

    @contextmanager
    def _replaying(self, before: Recorded) -> Iterator[None]:
        """Within it, modules return what they returned before, as often as they did, and then run again."""

        def replay(left: list[Any], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return copied(left.pop(0)) if left else original(*args, **kwargs)

        modules = [self.beside[name] for name in before]
        with standing_in(modules, [partial(replay, list(before[name]), self.beside[name].forward) for name in before]):
            yield


def _copies(readout: nn.Module) -> dict[str, nn.Module]:
    """Which modules of the model stand aside for a readout's own, by name."""
    return readout.by_name() if isinstance(readout, Tail) else {}
