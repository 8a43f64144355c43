"""Which documents stay, by votes, rules, classifiers; and counts of demonstrations."""
