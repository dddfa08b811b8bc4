"""One file a backend: is it available, how does it prepare weights, how does it run, where does it round."""
