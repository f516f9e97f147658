"""What pyproject.toml cannot say: the recipes, which stand at the top of the repository, are shipped in the package."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["ssl_zoo*"]), "ssl_zoo.recipes"], package_dir={"ssl_zoo.recipes": "recipes"},
      package_data={"ssl_zoo": ["py.typed", "evaluation/report.schema.json"], "ssl_zoo.recipes": ["**/*.yaml"]})
