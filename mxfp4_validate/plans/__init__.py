"""Plans: two servers and the stages they go through, as a file; launched, asked, judged and resumed by one command."""
