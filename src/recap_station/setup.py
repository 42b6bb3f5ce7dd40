"""Package `recap_station`: The cell's contract, bags, simulator and drivers: the ground floor."""

from setuptools import find_packages, setup

setup(
    name="recap_station",
    version="0.1.0",
    packages=find_packages(include=["recap_station", "recap_station.*"]),
    package_data={"recap_station.nodes": ["discovery.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/recap_station"]),
        ("share/recap_station", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    license="Apache-2.0",
    description="The cell's contract, bags, simulator and drivers: the ground floor.",
    entry_points={
        "console_scripts": [
            "replay_node = recap_station.nodes.replay_node:main",
            "station_node = recap_station.nodes.station_node:main",
        ]
    },
)
