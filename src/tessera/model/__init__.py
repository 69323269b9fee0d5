"""The decoder-only transformer and the pieces that fill its slots, all written here on torch tensors.

`decoder.py` is the whole model in one page. Each family of pieces is a dict at the bottom of its file: `POSITIONS`,
`NORMS`, `ATTENTIONS`, `FEED_FORWARDS`, `PLACEMENTS`, `INITS`. `presets.py` has known shapes and the one dial `depth`.

Letters in names of tensors: B batch, T time (new tokens), S time (all tokens that can be seen), D model width,
H heads, G key and value heads, K head width, V vocabulary, F feed-forward width, N rows.
"""
