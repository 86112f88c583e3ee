"""Which of torch's operations keep what is known of a tensor, by the operation's name without overload."""

from __future__ import annotations

# Order-preserving ones keep every fact; moving ones keep what holds of every element; the rest is by arithmetic.
SAME_ORDER = {
    "_to_copy", "to", "clone", "contiguous", "detach", "alias", "lift_fresh", "view", "_unsafe_view", "reshape",
    "_reshape_alias", "squeeze", "unsqueeze", "flatten", "native_dropout",
}  # fmt: skip
MOVES = {
    "t", "transpose", "permute", "expand", "slice", "select", "index", "index_select", "gather", "embedding",
    "repeat", "split", "split_with_sizes", "unbind", "narrow", "as_strided", "diagonal", "flip", "roll", "unfold",
    "sum", "mean", "cumsum", "repeat_interleave", "movedim", "neg",
}  # fmt: skip
ZERO_AT_ZERO = {
    "silu", "gelu", "relu", "tanh", "abs", "square", "sqrt", "erf", "sin", "softsign", "leaky_relu", "hardswish",
}  # fmt: skip
PRODUCTS = {"mm", "bmm", "matmul", "mul", "dot", "mv", "convolution", "_grouped_mm", "einsum", "linear"}
ADDS = {"add", "sub"}
# Where the values that a result is made of stand among the arguments; others (masks, indices) choose among them.
JOINS = {
    "cat": (0,), "stack": (0,), "copy": (1,), "where": (1, 2), "masked_fill": (0, 2), "masked_scatter": (0, 2),
    "index_fill": (0, 3), "index_put": (0, 2), "index_add": (0, 3), "scatter_add": (0, 3), "scatter": (0, 3),
}  # fmt: skip
FILLS = {"full": 1, "full_like": 1, "new_full": 2, "fill": 1, "scalar_tensor": 0}
BIASES = {"convolution": 2, "linear": 2, "_grouped_mm": 3}
ZEROS = {"zeros", "zeros_like", "new_zeros", "zero"}
NORMS = {"native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm"}
ASK_FOR_VALUES = {"nonzero", "_local_scalar_dense"}
ATTENTIONS = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention",
}  # fmt: skip
