"""A nemesis for real processes: servers, workers and clients under load, faults, a history and a checker.

`make faults` runs the scenarios of `catalogue.py`, each in namespaces of its own where the machine allows
that. Its clients write down what they began and what they heard (`history.py`), and `checker.py` says
afterwards what was promised and not kept.
"""
