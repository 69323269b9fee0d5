"""The decoder in NumPy alone, every gradient written by hand.

`ops/` has the mathematics: each operation is two pure functions, `name_forward(...) -> (y, saved)` and
`name_backward(dy, saved) -> gradients`, with the derivation between them. The pieces (`attention.py`, `feedforward.py`,
`norm.py`, `position.py`, ...) hold the parameters and put operations together; `decoder.py` puts the pieces together. A
`d` in front of a name is the gradient of the loss with respect to it: `dx_BTD` has the shape of `x_BTD`.

Names of parameters, settings and what they mean are those of `tessera.model`, whose oracle this is: a checkpoint of one
opens with the other. Letters in names of arrays: B batch, T time (new tokens), S time (all tokens that can be seen), D
model width, H heads, G key and value heads, R query heads of one key head (H = G R), K head width, V vocabulary, F
feed-forward width, N rows.
"""
