"""Text in, batches out: documents -> tokenizer -> shards -> windows.

`documents` reads files, folders and the named corpora of `catalog` (which `download` fetches); `prepare` splits and
encodes them into `shards`; `batches` cuts a shard into the windows that a model trains on.
"""
