"""The contract and numpy reference of every `bertc` operator, one file each. Imports nothing of the compiler."""
