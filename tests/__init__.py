"""Tests of Linkspan: one package, so that helpers are imported by path and files of two suites may share a name."""
