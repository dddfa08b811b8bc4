"""Named tensors -> canonical `MoeWeights`; for now the synthetic ones."""
