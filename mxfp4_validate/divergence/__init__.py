"""Teacher-forced comparison of two servers on the same tokens: what is asked, checked, computed, decided and kept. No torch, no model."""
