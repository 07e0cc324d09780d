"""Networks: blocks and embeddings, stacks of any modules, the gated layers of the original module, and what builds one from a few numbers."""
