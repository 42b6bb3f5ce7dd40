"""The operator's console: a cell in a browser. It shows and calls what other rooms do, and decides nothing.

`security` says who may ask for what, `control` which of several browsers commands, `feed` holds the newest
of everything between the thread of ROS and that of the web, `viewer` what one browser is sent, `server` the
pages and calls, `guard` what they pass first, `archive` and `recorded` what is recorded, `machine` the
computer, `serving` the web's thread. None of them knows ROS: `recap_teleop.nodes.console_node` does.
"""
