"""growing: trees of a drafter that scores them itself, a level a forward.

1. `settings`    how far they grow and which children a node gets, as the user sets it
2. `growth`      one row's tree, a level at a time; `together`, those of all rows
3. `branching`   which children a node gets, and how sure of them we are; `cape`, how many
4. `trees`       what the settings make of it for one request, and what is proposed
"""
