"""The operations, a family a file. None of them writes into what it is given, so a gradient may be used twice."""
