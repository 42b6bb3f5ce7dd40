"""Package `recap_teleop`: Takeover: pedal, modes, arbiter, episode control and recorder."""

from setuptools import find_packages, setup

setup(
    name="recap_teleop",
    version="0.1.0",
    packages=find_packages(include=["recap_teleop", "recap_teleop.*"]),
    package_data={"recap_teleop": ["console/static/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/recap_teleop"]),
        ("share/recap_teleop", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    license="Apache-2.0",
    description="Takeover: pedal, modes, arbiter, episode control and recorder.",
    entry_points={
        "console_scripts": [
            "arbiter_node = recap_teleop.nodes.arbiter_node:main",
            "pedal_node = recap_teleop.nodes.pedal_node:main",
            "leader_node = recap_teleop.nodes.leader_node:main",
            "twist_node = recap_teleop.nodes.twist_node:main",
            "episode_node = recap_teleop.nodes.episode_node:main",
            "recorder_node = recap_teleop.nodes.recorder_node:main",
            "console_node = recap_teleop.nodes.console_node:main",
            "operator_node = recap_teleop.nodes.operator_node:main",
        ]
    },
)
