"""Package `recap`: The top floor: command line, bring-up, demo and configuration."""

from glob import glob

from setuptools import find_packages, setup

setup(
    name="recap",
    version="0.1.0",
    packages=find_packages(include=["recap", "recap.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/recap"]),
        ("share/recap", ["package.xml"]),
        ("share/recap/launch", glob("launch/*.launch.py")),
        ("share/recap/config/stations", glob("config/stations/*.yaml")),
        ("share/recap/config/tasks", glob("config/tasks/*.yaml")),
        ("share/recap/config/layouts", glob("config/layouts/*.yaml")),
        ("share/recap/config/foxglove", glob("config/foxglove/*.json")),
        ("share/recap/config/rerun", glob("config/rerun/*.py")),
        ("share/recap/config/leaders", glob("config/leaders/*.yaml")),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    license="Apache-2.0",
    description="The top floor: command line, bring-up, demo and configuration.",
    entry_points={
        "console_scripts": [
            "recap = recap.cli:main",
            "console_node = recap.nodes.console_node:main",
            "attempts_node = recap.nodes.attempts_node:main",
            "lifecycle_manager_node = recap.nodes.lifecycle_manager_node:main",
        ]
    },
)
