"""What pyproject.toml cannot say: of the repository root, the package `gimbal` is `__init__.py` alone, not dev.py."""

from setuptools import setup
from setuptools.command.build_py import build_py


class PackageAlone(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if package != "gimbal" or module[1] == "__init__"]


setup(cmdclass={"build_py": PackageAlone})
