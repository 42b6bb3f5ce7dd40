"""`./recap operate`: what a person at the cell sees and does, in a terminal.

`recap_teleop.board` keeps what was heard and says how things stand, `view` writes that as lines, `actions`
turns keys into calls of services, `terminal` draws and reads keys. None of them knows ROS, which is for
`recap.nodes.operate_node`.
"""
