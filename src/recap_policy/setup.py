"""Package `recap_policy`: The vision-language-action policy, its inference process and its 50 Hz node."""

from setuptools import find_packages, setup

setup(
    name="recap_policy",
    version="0.1.0",
    packages=find_packages(include=["recap_policy", "recap_policy.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/recap_policy"]),
        ("share/recap_policy", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    license="Apache-2.0",
    description="The vision-language-action policy, its inference process and its 50 Hz node.",
    entry_points={
        "console_scripts": [
            "policy_node = recap_policy.nodes.policy_node:main",
        ]
    },
)
