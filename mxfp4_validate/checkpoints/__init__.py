"""Named tensors -> canonical `MoeWeights`: of a checkpoint's files, and synthetic ones."""
