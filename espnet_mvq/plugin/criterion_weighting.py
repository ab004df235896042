"""Weights of utterances in an ESPnet model's own loss, within its one forward."""

import contextlib
import functools
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Attributes of ESPnet's models
CTC = ("ctc", "st_ctc")
LABEL_SMOOTHING = ("criterion_att", "criterion_mlm", "criterion_st", "criterion_asr")
TRANSDUCER = ("criterion_transducer", "st_criterion_transducer")
_ABSENT = object()

Weigh = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class CriterionWeighting:
    """Weights the utterances in each criterion of a model.

    In place of sum_i l_i / D a criterion returns sum_i w_i l_i / D, with the loss l_i
    of utterance i and the criterion's own divisor D, the batch size as a rule. Front
    end, encoder and decoder run once. Criteria are changed only inside `with
    criteria.weighted_by(...):`; before and after it the model is that of stock ESPnet.

    An utterance of weight 0 does not change the loss or its gradient, even if its own
    loss is infinite or NaN: so it may be one without labels. It still counts in D.

    Args:
        model: ESPnet model of a task that the MVQ loss supports.

    Raises:
        ValueError: If the model has criteria that cannot be weighted; naming all.

    Example:
        >>> criteria = CriterionWeighting(model)  # doctest: +SKIP
        >>> with criteria.weighted_by(lambda losses, labels: w):  # doctest: +SKIP
        ...     loss, stats, weight = model(**batch)
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
        self._num_calls = 0
        self._has_text: Optional[torch.Tensor] = None

    @contextlib.contextmanager
    def weighted_by(self, weigh: Weigh) -> Iterator[None]:
        """Weight utterances while the block runs one forward.

        Args:
            weigh: Called in each call of a criterion. Its arguments are the
                utterances' losses in nats, summed over labels, detached, float, (B,),
                and their numbers of labels, int64, (B,); both 0 for utterances that the
                model does not give to the criterion. Labels of attention include <eos>;
                those of Mask-CTC are the masked ones. It returns the utterances'
                weights, at least 0, (B,); no gradient flows through them. CTC is called
                for the encoder's output first, then for intermediate layers.

        Raises:
            ValueError: If the weights are not as expected, or no criterion ran.
        """
        self._weigh, self._num_calls = weigh, 0
        with contextlib.ExitStack() as stack:
            stack.callback(vars(self).update, _weigh=None)  # it need not be picklable
            for owner, name, replacement in self._replacements():
                stack.enter_context(replaced(owner, name, replacement))
            yield
        if self._num_calls == 0:
            raise ValueError(
                f"{type(self._model).__name__}: none of its criteria ran, so none was "
                "weighed. In torch's DataParallel copies of the model run: train "
                "several GPUs with --multiprocessing_distributed true"
            )

    def _replacements(self) -> Iterator[Tuple[Any, str, Callable]]:
        """Yield object, attribute and the function to replace it with."""
        model = self._model
        functions = {
            **dict.fromkeys(CTC, self._ctc),
            **dict.fromkeys(LABEL_SMOOTHING, self._label_smoothing),
            **dict.fromkeys(TRANSDUCER, self._transducer),
        }
        rows = [
            (getattr(model, name, None), "forward", name, function)
            for name, function in functions.items()
        ]
        if hasattr(model, "na"):  # the task s2t
            rows.append((model, "_calc_ctc_loss", "ctc", self._s2t_ctc))
        if hasattr(model, "use_auxiliary_ctc"):  # the task asr_transducer
            rows.append((model, "_calc_ctc_loss", "aux_ctc", self._ctc))
            rows.append((model, "_calc_lm_loss", "aux_lm", self._auxiliary_lm))
            if model.criterion_transducer is None:
                name = "criterion_transducer"
                function = self._first_transducer
                rows.append((model, "_calc_transducer_loss", name, function))
        for owner, method, name, function in rows:
            if owner is not None:
                stock = getattr(owner, method)
                yield owner, method, functools.partial(function, name, stock)

    def _ctc(self, name: str, stock: Callable, *args: Any) -> torch.Tensor:
        """Run a function that calls torch's CTC loss."""

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
            weights = self._weights(name, losses, labels)
            _cut_gradient(log_probs, weights, dim=1)
            weighted = _scale(losses, weights)
            return weighted.sum() if reduction == "sum" else weighted

        return self._intercept(name, functional.ctc_loss, ctc_loss, stock, *args)

    def _label_smoothing(
        self, name: str, stock: Callable, logits: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Run ESPnet's label smoothing."""
        is_label = targets != getattr(self._model, name).padding_idx
        return self._divergence(name, is_label, stock, logits, targets)

    def _auxiliary_lm(
        self,
        name: str,
        stock: Callable,
        decoder_out: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Run the language model loss of asr_transducer, where 0 is no label."""
        return self._divergence(name, labels != 0, stock, decoder_out, labels)

    def _divergence(
        self, name: str, is_label: torch.Tensor, stock: Callable, *args: Any
    ) -> torch.Tensor:
        """Run a function that calls torch's KL divergence; is_label, bool, (B, L).

        The caller masks, sums and divides; so one value per position will do.
        """

        def kl_div(*args: torch.Tensor, **options: Any) -> torch.Tensor:
            divergences = functional.kl_div(*args, **options)  # (B L, V)
            losses = divergences.sum(1).view(is_label.shape)
            losses = losses.masked_fill(~is_label, 0)
            weights = self._weights(name, losses.sum(1), is_label.sum(1))
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
        """Run a transducer loss without its reduction, which is done here."""
        criterion = getattr(self._model, name)
        divisor = len(labels) if criterion.reduction == "mean" else 1
        logits = logits.view_as(logits)  # not the caller's: its gradient is cut
        with replaced(criterion, "reduction", "none"):
            losses = stock(logits, targets, frames, labels)
        weights = self._weights(name, losses, labels)
        _cut_gradient(logits, weights, dim=0)
        return _scale(losses, weights).sum() / divisor

    def _first_transducer(self, name: str, stock: Callable, *args: Any) -> torch.Tensor:
        """Let asr_transducer build its criterion, which it does in its first loss."""
        with torch.no_grad():
            stock(*args)
        criterion = getattr(self._model, name)
        problems = _transducer_problems(name, criterion)
        if problems:
            raise ValueError(f"{type(self._model).__name__}: {problems[0]}")
        function = functools.partial(self._transducer, name, criterion.forward)
        with replaced(criterion, "forward", function):
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
        has_text = [self._model.na not in text for text in ys_pad]
        if not all(has_text):
            self._has_text = torch.tensor(has_text, device=ys_pad.device)
        try:
            return stock(encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)
        finally:
            self._has_text = None

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
        self, name: str, losses: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the weights of the utterances that a criterion was given."""
        self._num_calls += 1
        losses, has_text = losses.detach(), self._has_text
        labels = labels.to(losses.device, torch.int64)
        if has_text is not None:
            losses, labels = _spread(losses, has_text), _spread(labels, has_text)
        weights = self._weigh(losses, labels).detach().to(losses)
        if weights.shape != losses.shape or not (weights >= 0).all():
            raise ValueError(
                f"{type(self._model).__name__}: {name}: got the weights {weights}, "
                f"expected {len(losses)} numbers, each at least 0"
            )
        return weights if has_text is None else weights[has_text]


class _Intercepting(TorchFunctionMode):
    """Redirects calls of one function of torch to another."""

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
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of an object while the block runs."""
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
    """Multiply losses by weights; a weight of 0 removes infinite losses, too."""
    return (losses * weights).masked_fill(weights == 0, 0)


def _cut_gradient(inputs: torch.Tensor, weights: torch.Tensor, dim: int) -> None:
    """Let no gradient flow to the inputs of utterances with weight 0.

    The gradient of an infinite loss is NaN, even when multiplied by 0. Without weights
    of 0 the gradient, which is large in a transducer, is not copied.
    """
    cut = weights == 0
    if inputs.requires_grad and cut.any():
        shape = [1] * inputs.dim()
        shape[dim] = -1
        inputs.register_hook(lambda grad: grad.masked_fill(cut.view(shape), 0))


def _spread(values: torch.Tensor, has_text: torch.Tensor) -> torch.Tensor:
    """Return values of all utterances, 0 for those without a text."""
    spread = values.new_zeros(len(has_text))
    spread[has_text] = values
    return spread


def _find_problems(model: torch.nn.Module) -> List[str]:
    """Return the reasons why a model's loss cannot be weighted."""
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
    """Return the same for a transducer loss; None: not yet built."""
    is_module = isinstance(criterion, torch.nn.Module)
    reduction = getattr(criterion, "reduction", None)
    if criterion is None or (is_module and reduction in ("mean", "sum")):
        return []
    return [
        f"{name}: got {type(criterion).__name__} with reduction {reduction!r}, "
        "expected a module with reduction 'mean' or 'sum'"
    ]
