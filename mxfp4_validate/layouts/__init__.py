"""pack / unpack per backend: our own bijections, so that the vendor's helpers are judged too."""
