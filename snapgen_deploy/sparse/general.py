"""General passes for a student whose layers are not known: while its module runs, some of PyTorch's functions compute the same
in operations that a target takes.

They act on calls, not on modules: attention, norms, means, products and slices are replaced wherever the module's code calls
PyTorch for them. `nn.MultiheadAttention` and what is written in other operators stay as they are.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.module_student import ModuleReference
from snapgen_deploy.sparse.student_forms import concatenated, count_streams, with_unread
from snapgen_deploy.sparse.token_layers import GELUS, OpForm

_LEAST = 1e-3  # that a norm's input is divided by, see `TokenNorm`
_MOST_PARTS = 64  # that an axis is taken apart into
_AS_IT_IS = object()  # a replacement's answer where it does not fit a call


class WrittenModule(nn.Module):
    """A user's module for one size, called as (latent, time_features, stream, stream_mask, ..., pooled vectors) -> output."""

    def __init__(self, student: ModuleReference, latent: tuple[int, int], *, channels: bool, batch: int, ops: OpForm) -> None:
        """Raises:
        BadInput: if the module cannot be traced, or gives no latent.
        """
        super().__init__()
        self.student, self.channels, self.ops = student, channels, ops
        self.columns = nn.Module()  # of 1/D, by D: a product with one is a mean
        config = student.config
        shapes = [(config.latent_channels, *latent), (config.time_features,)]
        shapes += [shape for s in config.text_streams for name, shape in s.shapes.items() if name != s.pooled_name]
        shapes += [(s.pooled,) for s in config.text_streams if s.pooled]
        try:
            with torch.no_grad(), _without_tracebacks(), FakeTensorMode(allow_non_fake_inputs=True):  # makes the constants
                self(*(torch.zeros(batch, *shape) for shape in shapes))
        except BadInput as error:
            raise BadInput(f"{error}; it was traced by shapes alone: no branch and no shape may depend on numbers") from error

    def forward(self, latent: Tensor, time_features: Tensor, *texts: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), per stream (B, L, D) and (B, L), pooled vectors (B, P) -> (B, C, h, w)."""
        config, streams = self.student.config, count_streams(texts)
        pairs = [name for s in config.text_streams for name in (s.name, f"{s.name}_mask")]
        pooled = [s.pooled_name for s in config.text_streams if s.pooled]
        given = dict(zip([*pairs, *pooled], texts, strict=True))
        assert len(pairs) == 2 * streams
        read = config.arguments_by_input
        features = with_unread(time_features, [value for name, value in given.items() if name not in read])
        with _GeneralForms(self):
            out: Tensor = self.student(
                latent,
                features,
                {s.name: given[s.name] for s in config.text_streams},
                {s.name: given[f"{s.name}_mask"] for s in config.text_streams},
                {s.name: given[s.pooled_name] for s in config.text_streams if s.pooled},
            )
        return out

    def column(self, size: int) -> Tensor:
        """(1, size, 1) of 1/size. A `bmm` and not a `linear` takes it, so that no weight quantiser takes it for a layer."""
        name = f"of_{size}"
        if not hasattr(self.columns, name):
            with unset_fake_temporarily():
                self.columns.register_buffer(name, torch.full((1, size, 1), 1.0 / size))
        found: Tensor = getattr(self.columns, name)
        return found


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """PyTorch logs one where an operator refuses its shapes, beside the exception that says so."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _GeneralForms(TorchFunctionMode):
    """Within the block, calls of some functions are replaced; all of a replacement's own calls are as they stand here."""

    def __init__(self, written: WrittenModule) -> None:
        super().__init__()
        self.written, self.ops = written, written.ops
        self.spelled = not written.channels and written.ops != "native"  # for a delegate that takes few operations
        self.own_norms = written.channels or self.spelled

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        form = _EVERYWHERE.get(func)
        if form is None and self.own_norms:
            form = _NORMS.get(func)
        if form is None and self.spelled:
            form = _SPELLED.get(func)
        found = _AS_IT_IS if form is None else form(self, *args, **given)
        return func(*args, **given) if found is _AS_IT_IS else found

    def mean(self, x: Tensor) -> Tensor:
        """Over the last axis, which stays."""
        if not self.spelled:
            return x.mean(-1, keepdim=True)
        return torch.bmm(x.reshape(1, -1, x.shape[-1]), self.written.column(x.shape[-1])).reshape(*x.shape[:-1], 1)

    def normed(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        """A norm over the last axis; in half precision as `TokenNorm` and `ChannelsNorm` have it, without overflow."""
        if centred:
            x = x - self.mean(x)
        if not self.written.channels and self.ops != "half":
            return x * (self.mean(x * x) + eps).rsqrt()
        largest = x.abs().amax(-1, keepdim=True) if self.written.channels else self.mean(x.abs()) * 8.0
        inverse = largest.clamp(min=_LEAST).reciprocal()
        y, root = x * inverse, inverse * math.sqrt(eps)
        return y * (self.mean(y * y) + root * root).rsqrt()


def _attention(
    forms: _GeneralForms,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *causal: bool,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention` as two products over (B*h, N, d); a mask of bool is added as -10^4."""
    *lead, tokens, dim = query.shape
    if is_causal or any(causal) or dropout_p or query.dim() < 3:
        return _AS_IT_IS
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        group = query.shape[-3] // key.shape[-3]
        key, value = (torch.cat([x.narrow(-3, i // group, 1) for i in range(lead[-1])], -3) for x in (key, value))
    if list(key.shape[:-2]) != lead:
        return _AS_IT_IS
    q, k, v = (x.reshape(-1, x.shape[-2], x.shape[-1]) for x in (query, key, value))
    scores = torch.bmm(q * (dim**-0.5 if scale is None else scale), k.transpose(1, 2))
    if attn_mask is not None:
        bias = (attn_mask.to(query.dtype) - 1.0) * -MASKED if attn_mask.dtype == torch.bool else attn_mask
        if math.prod(bias.shape[:-2]) == 1:
            scores = scores + bias.reshape(1, *(bias.shape[-2:] if bias.dim() > 1 else (1, bias.shape[-1])))
        else:
            scores = (scores.reshape(*lead, tokens, -1) + bias).reshape(scores.shape)
    return torch.bmm(scores.softmax(-1), v).reshape(*lead, tokens, v.shape[-1])


def _layer_norm(
    forms: _GeneralForms,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if len(normalized_shape) != 1:
        return _AS_IT_IS
    return _scaled(forms.normed(input, eps, centred=True), weight, bias)


def _rms_norm(
    forms: _GeneralForms,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    if len(normalized_shape) != 1:
        return _AS_IT_IS
    return _scaled(forms.normed(input, torch.finfo(input.dtype).eps if eps is None else eps, centred=False), weight, None)


def _group_norm(
    forms: _GeneralForms,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    rows = forms.normed(input.reshape(input.shape[0], num_groups, -1), eps, centred=True).reshape(input.shape)
    ones = (1,) * (input.dim() - 2)
    return _scaled(rows, *(None if x is None else x.reshape(1, -1, *ones) for x in (weight, bias)))


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _gelu(forms: _GeneralForms, input: Tensor, approximate: str = "none") -> Any:
    return GELUS[forms.ops](input) if approximate == "tanh" else _AS_IT_IS


def _product(forms: _GeneralForms, input: Tensor, other: Any) -> Any:
    """A product of stacks of matrices as one `bmm`: others are spread out first."""
    if not isinstance(other, Tensor) or min(input.dim(), other.dim()) < 3 or input.shape[:-2] != other.shape[:-2]:
        return _AS_IT_IS
    stacks = [x.reshape(-1, *x.shape[-2:]) for x in (input, other)]
    return torch.bmm(*stacks).reshape(*input.shape[:-1], other.shape[-1])


def _mean(forms: _GeneralForms, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    if len(axes) != 1 or axes[0] % input.dim() != input.dim() - 1 or dtype not in (None, input.dtype):
        return _AS_IT_IS
    found = forms.mean(input)
    return found if keepdim else found.reshape(input.shape[:-1])


def _power(forms: _GeneralForms, input: Any, exponent: Any) -> Any:
    return input * input if isinstance(input, Tensor) and not isinstance(exponent, Tensor) and exponent == 2 else _AS_IT_IS


def _with_fractions(func: Any, forms: _GeneralForms, *args: Any, **kwargs: Any) -> Any:
    """Arithmetic with whole numbers as with others: an integer would be a constant that is converted at run time."""
    if kwargs or not any(type(a) is int for a in args) or not all(a.is_floating_point() for a in args if isinstance(a, Tensor)):
        return _AS_IT_IS
    return func(*(float(a) if type(a) is int else a for a in args))


def _chunk(forms: _GeneralForms, input: Tensor, chunks: int, dim: int = 0) -> Any:
    return _split(forms, input, -(-input.shape[dim] // chunks), dim)


def _split(forms: _GeneralForms, tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> Any:
    size, total = split_size_or_sections, tensor.shape[dim]
    sizes = [min(size, total - at) for at in range(0, total, size)] if isinstance(size, int) else list(size)
    return tuple(tensor.narrow(dim, sum(sizes[:i]), length) for i, length in enumerate(sizes))


def _unbind(forms: _GeneralForms, input: Tensor, dim: int = 0) -> Any:
    axis = dim % input.dim()
    shape = [*input.shape[:axis], *input.shape[axis + 1 :]]
    return tuple(input.narrow(axis, i, 1).reshape(shape) for i in range(input.shape[axis]))


def _part(forms: _GeneralForms, input: Tensor, index: Any) -> Any:
    """Indexing; a number or a new axis is a slice and a change of shape, and a slice of everything is nothing."""
    places = list(index) if isinstance(index, tuple) else [index]
    if not all(p is None or p is ... or type(p) is int or isinstance(p, slice) for p in places):
        return _AS_IT_IS
    axes = sum(p is not None and p is not ... for p in places)
    at = next((i for i, p in enumerate(places) if p is ...), len(places))
    places[at : at + 1] = [slice(None)] * (input.dim() - axes)
    slices = [slice(p % n, p % n + 1) if isinstance(p, int) else p for p, n in zip(_old(places), input.shape, strict=True)]
    if not forms.spelled and (len(slices) != len(places) or any(isinstance(p, int) for p in places)):
        return _AS_IT_IS
    found = input if all(p == slice(None) for p in slices) else input[tuple(slices)]
    lengths = iter(found.shape)
    shape = [(None if isinstance(p, int) else n) for p in places for n in ([1] if p is None else [next(lengths)])]
    return found if len(shape) == len(slices) and None not in shape else found.reshape([n for n in shape if n is not None])


def _old(places: Sequence[Any]) -> list[Any]:
    """Of an index, what is of an axis that the tensor has."""
    return [p for p in places if p is not None]


def _unsqueeze(forms: _GeneralForms, input: Tensor, dim: int) -> Any:
    axis = dim % (input.dim() + 1)
    return input.reshape([*input.shape[:axis], 1, *input.shape[axis:]])


def _squeeze(forms: _GeneralForms, input: Tensor, dim: Any = None) -> Any:
    axes = range(input.dim()) if dim is None else [d % input.dim() for d in ([dim] if isinstance(dim, int) else dim)]
    return input.reshape([n for axis, n in enumerate(input.shape) if n != 1 or axis not in axes])


def _dropout(forms: _GeneralForms, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return _AS_IT_IS if training else input


def _contiguous(forms: _GeneralForms, input: Tensor, **kwargs: Any) -> Any:
    return _AS_IT_IS if kwargs else input


def _view(forms: _GeneralForms, input: Tensor, *shape: Any) -> Any:
    """Since nothing is made contiguous."""
    return _AS_IT_IS if any(isinstance(n, torch.dtype) for n in shape) else input.reshape(*shape)


def _single(forms: _GeneralForms, input: Tensor, **kwargs: Any) -> Any:
    return input if input.dtype == torch.float32 and not kwargs else _AS_IT_IS


def _to(forms: _GeneralForms, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A conversion to the type and place that a tensor has, as of a module that is written for several."""
    return input if {*args, *kwargs.values()} <= {input.dtype, input.device} else _AS_IT_IS


def _repeated(forms: _GeneralForms, input: Tensor, repeats: Any, dim: int | None = None, **kwargs: Any) -> Any:
    """Each part of an axis several times."""
    if not isinstance(repeats, int) or dim is None or input.shape[dim] > _MOST_PARTS:
        return _AS_IT_IS
    return torch.cat([input.narrow(dim, i, 1) for i in range(input.shape[dim]) for _ in range(repeats)], dim)


def _concatenated(forms: _GeneralForms, tensors: Any, dim: Any = 0, **kwargs: Any) -> Any:
    return concatenated(tensors, dim) if isinstance(dim, int) and not kwargs else _AS_IT_IS


def _reordered(forms: _GeneralForms, equation: Any, *operands: Tensor) -> Any:
    """`einsum` of one tensor that only changes the order of its axes."""
    before, _, after = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    if len(operands) != 1 or len(set(before)) != len(before) or sorted(before) != sorted(after) or not before.isalpha():
        return _AS_IT_IS
    return operands[0].permute([before.index(axis) for axis in after])


def _resized(forms: _GeneralForms, input: Tensor, size: Any = None, scale_factor: Any = None, **kwargs: Any) -> Any:
    """`nearest-exact` by a whole factor is `nearest`, which every target has."""
    if kwargs.get("mode") != "nearest-exact":
        return _AS_IT_IS
    if size is not None:
        wanted = [size] * (input.dim() - 2) if isinstance(size, int) else list(size)
        whole = all(to % n == 0 for to, n in zip(wanted, input.shape[2:], strict=True))
    else:
        factors = scale_factor if isinstance(scale_factor, tuple | list) else [scale_factor]
        whole = all(float(f).is_integer() for f in factors)
    return F.interpolate(input, size, scale_factor, **kwargs | {"mode": "nearest"}) if whole else _AS_IT_IS


_Form = Callable[..., Any]
_EVERYWHERE: Mapping[Any, _Form] = MappingProxyType(
    {
        F.scaled_dot_product_attention: _attention,
        F.rms_norm: _rms_norm,
        F.dropout: _dropout,
        F.interpolate: _resized,
        torch.einsum: _reordered,
        torch.repeat_interleave: _repeated,
        torch.Tensor.repeat_interleave: _repeated,
        torch.chunk: _chunk,
        torch.Tensor.chunk: _chunk,
        torch.split: _split,
        torch.Tensor.split: _split,
        torch.unbind: _unbind,
        torch.Tensor.unbind: _unbind,
        torch.Tensor.__getitem__: _part,
        torch.Tensor.contiguous: _contiguous,
        torch.Tensor.view: _view,
        torch.Tensor.float: _single,
        torch.Tensor.to: _to,
    }
)
_NORMS: Mapping[Any, _Form] = MappingProxyType(
    {
        F.layer_norm: _layer_norm,
        F.group_norm: _group_norm,
        torch.pow: _power,
        torch.Tensor.pow: _power,
        torch.Tensor.__pow__: _power,
    }
)
_ARITHMETIC = (
    torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.sub, torch.Tensor.sub,
    torch.Tensor.__sub__, torch.Tensor.__rsub__, torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__,
    torch.div, torch.Tensor.div, torch.Tensor.__truediv__, torch.Tensor.__rtruediv__,
)  # fmt: skip
_SPELLED: Mapping[Any, _Form] = MappingProxyType(
    {
        **{func: partial(_with_fractions, func) for func in _ARITHMETIC},
        F.gelu: _gelu,
        torch.cat: _concatenated,
        torch.matmul: _product,
        torch.Tensor.matmul: _product,
        torch.Tensor.__matmul__: _product,
        torch.mean: _mean,
        torch.Tensor.mean: _mean,
        torch.unsqueeze: _unsqueeze,
        torch.Tensor.unsqueeze: _unsqueeze,
        torch.squeeze: _squeeze,
        torch.Tensor.squeeze: _squeeze,
    }
)
