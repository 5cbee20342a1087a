"""Metadata is in pyproject.toml; this file is where compiled extensions are declared. There are none yet."""

from setuptools import setup

setup()
