"""Training that can be killed and resumed, evaluation, and what makes both fast on a processor."""
