"""Maps and reports as IMAGE tensors."""
