"""The ROS shell of recap_station: the only modules here that import rclpy."""
