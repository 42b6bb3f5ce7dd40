"""Package `recap_learner`: From rosbags to labelled episodes to a better policy."""

from setuptools import find_packages, setup

setup(
    name="recap_learner",
    version="0.1.0",
    packages=find_packages(include=["recap_learner", "recap_learner.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/recap_learner"]),
        ("share/recap_learner", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    license="Apache-2.0",
    description="From rosbags to labelled episodes to a better policy.",
    entry_points={
        "console_scripts": [
            "learner_node = recap_learner.nodes.learner_node:main",
        ]
    },
)
