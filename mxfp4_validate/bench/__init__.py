"""How fast backends are: what is measured (`spec`), how (`measure`), against what (`floor`), and what follows (`crossover`); `record` keeps it."""
