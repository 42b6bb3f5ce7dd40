"""The ROS shell of recap_teleop: the only modules here that import rclpy."""
