"""The ROS shell of the top floor."""
