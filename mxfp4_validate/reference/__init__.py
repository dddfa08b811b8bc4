"""The mathematics: routing, activation, parallelism, and four oracles. Imports neither `layouts` nor `backends`."""
