"""Evaluation: from label maps to tables and figures."""
