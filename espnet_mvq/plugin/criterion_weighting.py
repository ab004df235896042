"""Weighing the utterances in an ESPnet model's own loss, within its one forward."""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Attributes of ESPnet's models
CTC = ("ctc", "st_ctc")
LABEL_SMOOTHING = ("criterion_att", "criterion_mlm", "criterion_st", "criterion_asr")
TRANSDUCER = ("criterion_transducer", "st_criterion_transducer")
_ABSENT = object()


@dataclass(frozen=True)
class UtteranceLosses:
    """What one call of a criterion found for the utterances of a batch.

    Attributes:
        losses: Loss of each utterance in nats, summed over its labels, float, (B,). 0
            for those that the model did not give to the criterion.
        labels: Labels that each sums over, int64, (B,). Those of attention have <eos>
            among them, those of Mask-CTC are the masked ones.
        weights: Weight of each, float, (B,).
        divisor: What the criterion divides the sum by: the utterances it was given, or
            all their labels (`length_normalized_loss`), int64, ().
    """

    losses: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    divisor: torch.Tensor

    @property
    def losses_per_label(self) -> torch.Tensor:
        """Loss of each utterance in nats per label, (B,)."""
        return self.losses / self.labels.clamp(min=1)

    @property
    def unweighted(self) -> torch.Tensor:
        """The batch's loss as stock ESPnet computes it, ()."""
        return self.losses.sum() / self.divisor


Weigh = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TaskLossWeigher:
    """Makes each criterion of a model weigh its utterances.

    In place of sum_i l_i / D a criterion returns sum_i w_i l_i / D, with the loss l_i
    of utterance i and what the criterion divides by, D, the batch size as a rule. Front
    end, encoder and decoder run once, as ever. Criteria are changed only inside `with
    weigher.weighing(...):`; before and after it the model is that of stock ESPnet.

    An utterance of weight 0 leaves no trace in the loss or its gradient, even if its
    own loss is infinite or NaN: so it may be one without labels. It still counts in D.

    Args:
        model: ESPnet model of a task that the MVQ loss is for.

    Raises:
        ValueError: If the model has a criterion that cannot be weighed; naming all.

    Example:
        >>> weigher = TaskLossWeigher(model)  # doctest: +SKIP
        >>> with weigher.weighing(lambda losses, labels: 1 - alphas):  # doctest: +SKIP
        ...     loss, stats, weight = model(**batch)
        >>> weigher.take()["ctc"][0].losses_per_label  # doctest: +SKIP
    """

    def __init__(self, model: torch.nn.Module):
        problems = _find_problems(model)
        if problems:
            raise ValueError(
                f"{type(model).__name__}: its loss cannot be weighed by utterance: "
                f"{'; '.join(problems)}"
            )
        self._model = model
        self._weigh: Optional[Weigh] = None
        self._taken: Dict[str, List[UtteranceLosses]] = {}
        self._num_calls = 0
        self._given: Optional[torch.Tensor] = None

    @contextlib.contextmanager
    def weighing(self, weigh: Weigh) -> Iterator["TaskLossWeigher"]:
        """Weigh utterances while the block runs, which is to be one forward.

        Args:
            weigh: Function of each call of a criterion: from the utterances' losses in
                nats, summed over labels, detached, float, (B,), and their labels,
                int64, (B,), both as in `UtteranceLosses`, to their weights, at least
                0, (B,). No gradient goes through the weights.

        Raises:
            ValueError: If the weights are not what they are to be, or no criterion ran.
        """
        self._weigh, self._taken, self._num_calls = weigh, {}, 0
        with contextlib.ExitStack() as stack:
            stack.callback(vars(self).update, _weigh=None)  # it need not be picklable
            for owner, name, replacement in self._replacements():
                stack.enter_context(_replaced(owner, name, replacement))
            yield self
        if self._num_calls == 0:
            raise ValueError(
                f"{type(self._model).__name__}: none of its criteria ran, so none was "
                "weighed. In torch's DataParallel copies of the model run: train "
                "several GPUs with --multiprocessing_distributed true"
            )

    def take(self) -> Dict[str, List[UtteranceLosses]]:
        """Hand over what the last block found, once.

        Returns:
            By name of the criterion, as it is called in the model (and aux_ctc and
            aux_lm of the task asr_transducer), its calls in their order. CTC is called
            for the encoder's output first, then for intermediate layers.
        """
        taken, self._taken = self._taken, {}
        return taken

    def _replacements(self) -> Iterator[Tuple[Any, str, Callable]]:
        """Yield what to put where while weighing: object, attribute, function."""
        model = self._model
        weighed = {name: self._ctc for name in CTC}
        weighed.update({name: self._label_smoothing for name in LABEL_SMOOTHING})
        weighed.update({name: self._transducer for name in TRANSDUCER})
        methods = {name: (getattr(model, name, None), "forward") for name in weighed}
        if hasattr(model, "na"):
            weighed["s2t"] = self._s2t_ctc
            methods["s2t"] = (model, "_calc_ctc_loss")
        if hasattr(model, "use_auxiliary_ctc"):  # the task asr_transducer
            weighed.update(aux_ctc=self._ctc, aux_lm=self._auxiliary_lm)
            methods["aux_ctc"] = (model, "_calc_ctc_loss")
            methods["aux_lm"] = (model, "_calc_lm_loss")
            if model.criterion_transducer is None:
                weighed["criterion_transducer"] = self._first_transducer
                methods["criterion_transducer"] = (model, "_calc_transducer_loss")
        for name, (owner, method) in methods.items():
            if owner is not None:
                stock = getattr(owner, method)
                yield owner, method, functools.partial(weighed[name], name, stock)

    def _ctc(self, name: str, stock: Callable, *args: Any) -> torch.Tensor:
        """Run what calls torch's CTC loss; its targets' lengths count the labels."""

        def ctc_loss(
            log_probs: torch.Tensor,
            targets: torch.Tensor,
            frames: torch.Tensor,
            labels: torch.Tensor,
            **options: Any,
        ) -> torch.Tensor:
            reduction = options.pop("reduction")
            assert reduction in ("none", "sum"), reduction
            losses = functional.ctc_loss(
                log_probs, targets, frames, labels, reduction="none", **options
            )
            weights = self._weights(name, losses, labels, len(losses))
            _cut_gradient(log_probs, weights, dim=1)
            weighted = _scale(losses, weights)
            return weighted.sum() if reduction == "sum" else weighted

        return self._intercept(name, functional.ctc_loss, ctc_loss, stock, *args)

    def _label_smoothing(
        self, name: str, stock: Callable, logits: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Run ESPnet's label smoothing."""
        criterion = getattr(self._model, name)
        scored = targets != criterion.padding_idx
        divisor = scored.sum() if criterion.normalize_length else len(targets)
        return self._divergence(name, scored, divisor, stock, logits, targets)

    def _auxiliary_lm(
        self,
        name: str,
        stock: Callable,
        decoder_out: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Run the language model loss of asr_transducer, where 0 is no label."""
        return self._divergence(
            name, labels != 0, len(labels), stock, decoder_out, labels
        )

    def _divergence(
        self, name: str, scored: torch.Tensor, divisor: Any, stock: Callable, *args: Any
    ) -> torch.Tensor:
        """Run what calls torch's KL divergence; scored, bool, (B, L), are its labels.

        The caller masks, sums and divides; so it gets one value per position, not one
        per class.
        """

        def kl_div(*args: torch.Tensor, **options: Any) -> torch.Tensor:
            divergences = functional.kl_div(*args, **options)  # (B L, V)
            losses = divergences.sum(1).view(scored.shape).masked_fill(~scored, 0)
            weights = self._weights(name, losses.sum(1), scored.sum(1), divisor)
            return _scale(losses, weights.unsqueeze(1)).view(-1, 1)

        return self._intercept(name, functional.kl_div, kl_div, stock, *args)

    def _transducer(
        self,
        name: str,
        stock: Callable,
        logits: torch.Tensor,
        targets: torch.Tensor,
        frames: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Run a transducer loss without its reduction, and do that here."""
        criterion = getattr(self._model, name)
        divisor = len(labels) if criterion.reduction == "mean" else 1
        logits = logits.view_as(logits)  # of which the gradient can be cut
        with _replaced(criterion, "reduction", "none"):
            losses = stock(logits, targets, frames, labels)
        weights = self._weights(name, losses, labels, divisor)
        _cut_gradient(logits, weights, dim=0)
        return _scale(losses, weights).sum() / divisor

    def _first_transducer(self, name: str, stock: Callable, *args: Any) -> torch.Tensor:
        """Let asr_transducer build its criterion, as it does in its first loss."""
        with torch.no_grad():
            stock(*args)
        criterion = getattr(self._model, name)
        problems = _transducer_problems(name, criterion)
        if problems:
            raise ValueError(f"{type(self._model).__name__}: {problems[0]}")
        function = functools.partial(self._transducer, name, criterion.forward)
        with _replaced(criterion, "forward", function):
            return stock(*args)

    def _s2t_ctc(
        self,
        name: str,
        stock: Callable,
        encoder_out: torch.Tensor,
        encoder_out_lens: torch.Tensor,
        ys_pad: torch.Tensor,
        ys_pad_lens: torch.Tensor,
    ) -> Any:
        """Run S2T's CTC, which leaves out utterances with <na> for their text."""
        self._num_calls += 1
        given = [self._model.na not in text for text in ys_pad]
        if not all(given):
            self._given = torch.tensor(given, device=ys_pad.device)
        try:
            return stock(encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)
        finally:
            self._given = None

    def _intercept(
        self,
        name: str,
        function: Callable,
        replacement: Callable,
        stock: Callable,
        *args: Any,
    ) -> torch.Tensor:
        """Run stock ESPnet with a function of torch replaced."""
        before = self._num_calls
        with _Intercepting(function, replacement):
            loss = stock(*args)
        if self._num_calls == before:
            raise ValueError(
                f"{type(self._model).__name__}: its {name} cannot be weighed by "
                f"utterance: expected it to call torch's {function.__name__}, as in "
                "the versions of ESPnet this was written for"
            )
        return loss

    def _weights(
        self, name: str, losses: torch.Tensor, labels: torch.Tensor, divisor: Any
    ) -> torch.Tensor:
        """Ask for the weights of the utterances a criterion was given, and note all."""
        self._num_calls += 1
        losses, given = losses.detach(), self._given
        labels = labels.to(losses.device, torch.int64)
        if given is not None:
            losses, labels = _spread(losses, given), _spread(labels, given)
        weights = self._weigh(losses, labels).detach().to(losses)
        if weights.shape != losses.shape or not (weights >= 0).all():
            raise ValueError(
                f"{type(self._model).__name__}: {name}: got the weights {weights}, "
                f"expected {len(losses)} numbers, each at least 0"
            )
        divisor = torch.as_tensor(divisor, device=losses.device)
        found = UtteranceLosses(losses, labels, weights, divisor)
        self._taken.setdefault(name, []).append(found)
        return weights if given is None else weights[given]


class _Intercepting(TorchFunctionMode):
    """While it is on, calls of one function of torch go to another."""

    def __init__(self, function: Callable, replacement: Callable):
        super().__init__()
        self._function = function
        self._replacement = replacement

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Optional[dict] = None
    ) -> Any:
        function = self._replacement if func is self._function else func
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute while the block runs."""
    attributes = vars(owner)
    before = attributes.get(name, _ABSENT)
    attributes[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            del attributes[name]  # the class has it
        else:
            attributes[name] = before


def _scale(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply losses by weights; 0 takes away what is infinite or NaN, too."""
    return (losses * weights).masked_fill(weights == 0, 0)


def _cut_gradient(inputs: torch.Tensor, weights: torch.Tensor, dim: int) -> None:
    """Let no gradient flow to the inputs of utterances with weight 0.

    An infinite loss has a gradient that is NaN, and so is 0 times that. Without such
    weights the gradient, large as that of a transducer is, is not touched.
    """
    cut = weights == 0
    if inputs.requires_grad and cut.any():
        shape = [1] * inputs.dim()
        shape[dim] = -1
        inputs.register_hook(lambda grad: grad.masked_fill(cut.view(shape), 0))


def _spread(values: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return values of the utterances that were given, and 0 for the others."""
    spread = values.new_zeros(len(given))
    spread[given] = values
    return spread


def _find_problems(model: torch.nn.Module) -> List[str]:
    """Say why a model's loss cannot be weighed, if so."""
    known = {*LABEL_SMOOTHING, *TRANSDUCER}
    names = [n for n in (*vars(model), *model._modules) if "criterion" in n]
    problems = []
    for name in sorted(set(names) - known):
        way_out = ": use another decoder" if name == "criterion_classif" else ""
        problems.append(f"{name} is not known{way_out}")
    if getattr(model, "superb_setup", False):
        problems.append("superb_setup computes a loss per batch: use a decoder")
    if getattr(model, "use_k2_pruned_loss", False):
        problems.append("k2's loss is not known: set use_k2_pruned_loss: false")
    for name in CTC:
        kind = getattr(getattr(model, name, None), "ctc_type", "builtin")
        if kind != "builtin":
            problems.append(f"{name}: got ctc_type {kind}, expected builtin")
    for name in LABEL_SMOOTHING:
        criterion = getattr(model, name, None)
        inner = getattr(criterion, "criterion", None)
        if criterion is not None and getattr(inner, "reduction", None) != "none":
            problems.append(f"{name}: expected ESPnet's LabelSmoothingLoss")
    for name in TRANSDUCER:
        problems += _transducer_problems(name, getattr(model, name, None))
    if not any(hasattr(model, name) for name in (*CTC, *known)):
        problems.append("it has no criterion that is known")
    return problems


def _transducer_problems(name: str, criterion: Any) -> List[str]:
    """Say why a transducer loss cannot be weighed, if so; None: not yet built."""
    is_module = isinstance(criterion, torch.nn.Module)
    reduction = getattr(criterion, "reduction", None)
    if criterion is None or (is_module and reduction in ("mean", "sum")):
        return []
    return [
        f"{name}: got {type(criterion).__name__} with reduction {reduction!r}, "
        "expected a module with reduction 'mean' or 'sum'"
    ]
