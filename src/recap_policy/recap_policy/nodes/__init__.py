"""The ROS shell of recap_policy: the only modules here that import rclpy."""
